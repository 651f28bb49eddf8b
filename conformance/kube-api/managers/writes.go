package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// object is an object of the kind with some fields.
func object(more fields) fields {
	result := fields{"apiVersion": "v1", "kind": "Example", "metadata": fields{"name": "a"}}
	for name, value := range more {
		result[name] = value
	}
	return result
}

// chosen are sequences for what random writes seldom hit.
func chosen() [][]step {
	one, two := object(fields{"data": fields{"k": "1", "l": "2"}}), object(fields{"data": fields{"k": "2"}})
	reset := object(fields{"data": fields{"k": "3"}, "metadata": fields{"name": "a", "managedFields": []any{fields{}}}})
	other := object(fields{"metadata": fields{"name": "a", "managedFields": []any{
		fields{"manager": "x", "operation": "Update", "apiVersion": "v2", "fieldsType": "FieldsV1", "fieldsV1": fields{"f:data": fields{"f:k": fields{}}}},
		fields{"manager": "y", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields{"f:atomic": fields{"f:k": fields{}}, "f:list": fields{"v:1": fields{}}, "x:1": fields{}}},
		fields{"manager": "z", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "subresource": "scale"},
	}}, "data": fields{"k": "4"}})
	malformed := object(fields{"metadata": fields{"name": "a", "managedFields": []any{
		fields{"manager": "x", "operation": "Odd", "apiVersion": "v1", "fieldsType": "FieldsV1"}}}, "data": fields{"k": "5"}})
	clientSide := object(fields{"data": fields{"k": "1"}})
	text, _ := json.Marshal(clientSide)
	annotated := copied(clientSide)
	annotated["metadata"] = fields{"name": "a", "annotations": fields{lastApplied: string(text)}}
	return [][]step{
		{{Operation: "create", Manager: "c", Object: one}, {Operation: "apply", Manager: "a", Object: two},
			{Operation: "apply", Manager: "a", Object: two, Force: true}, {Operation: "apply", Manager: "b", Object: two},
			{Operation: "apply", Manager: "a", Object: object(nil)}, {Operation: "apply", Manager: "b", Object: object(nil)}},
		{{Operation: "create", Manager: "c", Object: one}, {Operation: "update", Manager: "c", Object: reset},
			{Operation: "update", Manager: "d", Object: two}, {Operation: "apply", Manager: "a", Object: one},
			{Operation: "apply", Manager: "a", Object: one, Force: true}},
		{{Operation: "create", Manager: "c", Object: one}, {Operation: "update", Manager: "d", Object: other},
			{Operation: "update", Manager: "d", Object: malformed}, {Operation: "apply", Manager: "a", Object: one, Force: true}},
		{{Operation: "create", Manager: "kubectl-client-side-apply", Object: annotated},
			{Operation: "apply", Manager: "other", Object: two}, {Operation: "apply", Manager: "kubectl", Object: two},
			{Operation: "update", Manager: "x", Object: object(fields{"data": fields{"k": "7"}})},
			{Operation: "apply", Manager: "kubectl", Object: one}},
		{{Operation: "apply", Manager: "kubectl", Object: annotated}, {Operation: "apply", Manager: "kubectl", Object: annotated},
			{Operation: "apply", Manager: "kubectl", Object: object(fields{"metadata": fields{"name": "a", "annotations": fields{lastApplied: "{}", "x": "<y>"}}})}},
		{{Operation: "apply", Manager: "a", Object: object(fields{"odd": "1"})}, {Operation: "apply", Manager: "a", Object: object(fields{"data": fields{"k": int64(1)}})},
			{Operation: "apply", Manager: "a", Object: object(fields{"set": []any{"x", "x"}})}, {Operation: "apply", Manager: "a", Object: object(fields{"map": []any{fields{"value": "x"}}})},
			{Operation: "apply", Manager: "a", Object: object(fields{"nested": []any{}})}, {Operation: "apply", Manager: "a", Object: object(fields{"list": "x"})},
			{Operation: "apply", Manager: "a", Object: object(fields{"flag": "x"})}, {Operation: "apply", Manager: "a", Object: object(fields{"nested": fields{"b": "x"}})},
			{Operation: "apply", Manager: "a", Object: fields{"apiVersion": "v2", "kind": "Example", "metadata": fields{"name": "a"}}},
			{Operation: "apply", Manager: "a", Object: fields{"metadata": fields{"name": "a"}}},
			{Operation: "apply", Manager: "a", Object: object(fields{"port": []any{}})}, {Operation: "apply", Manager: "a", Object: object(fields{"set": []any{nil}})},
			{Operation: "apply", Manager: "a", Object: object(fields{"set": []any{fields{}}})}, {Operation: "apply", Manager: "a", Object: object(fields{"map": []any{"x"}})},
			{Operation: "apply", Manager: "a", Object: object(fields{"metadata": fields{"name": "a", "managedFields": []any{}}})}},
	}
}

// writes are random writes.
type writes struct{ *rand.Rand }

func pick[T any](w writes, choices ...T) T {
	return choices[w.IntN(len(choices))]
}

func (w writes) chance(percent int) bool {
	return w.IntN(100) < percent
}

func (w writes) text() string {
	return pick(w, "1", "2", "<3>")
}

func (w writes) name() string {
	return pick(w, "x", "y", "z", "w")
}

// texts is a map with up to three texts.
func (w writes) texts() fields {
	result := fields{}
	for range w.IntN(4) {
		result[w.name()] = w.text()
	}
	return result
}

// names is a list of different names, or with duplicates of any.
func (w writes) names(duplicates bool) []any {
	result, seen := []any{}, map[string]bool{}
	for range w.IntN(5) {
		name := w.name()
		if !seen[name] || duplicates {
			result = append(result, name)
		}
		seen[name] = true
	}
	return result
}

// some has some of the fields.
func (w writes) some(percent int, makers map[string]func() any) fields {
	result := fields{}
	for _, name := range sorted(makers) {
		if w.chance(percent) {
			result[name] = makers[name]()
		}
	}
	return result
}

func (w writes) pair() fields {
	return w.some(50, map[string]func() any{"x": func() any { return w.text() }, "y": func() any { return w.text() }})
}

// object is a random object. Only updates may have duplicates.
func (w writes) object(duplicates bool) fields {
	duplicates = duplicates && w.chance(20)
	result := w.some(pick(w, 15, 40), map[string]func() any{
		"data":   func() any { return w.texts() },
		"flag":   func() any { return w.chance(50) },
		"port":   func() any { return pick[any](w, int64(80), "http") },
		"atomic": func() any { return w.texts() },
		"list":   func() any { return w.names(true) },
		"set":    func() any { return w.names(duplicates) },
		"numbers": func() any {
			return pick(w, []any{}, []any{int64(1), 1.5}, []any{int64(2), int64(1)}, []any{int64(10), int64(9)})
		},
		"map": func() any {
			result := []any{}
			for _, name := range w.names(duplicates) {
				item := w.some(50, map[string]func() any{"value": func() any { return w.text() }, "tags": func() any { return w.names(duplicates) }})
				item["name"] = name
				result = append(result, item)
			}
			return result
		},
		"ports": func() any {
			result, seen := []any{}, map[string]bool{}
			for range w.IntN(4) {
				item := w.some(40, map[string]func() any{"protocol": func() any { return pick(w, "TCP", "UDP") }, "name": func() any { return w.name() }})
				item["port"] = pick(w, int64(9), int64(10))
				protocol, ok := item["protocol"]
				if !ok {
					protocol = "TCP"
				}
				if key := fmt.Sprint(item["port"], protocol); !seen[key] || duplicates {
					seen[key] = true
					result = append(result, item)
				}
			}
			return result
		},
		"nested": func() any {
			return w.some(50, map[string]func() any{"a": func() any { return w.text() }, "b": func() any { return int64(w.IntN(2)) }, "inner": func() any { return w.pair() }})
		},
		"groups": func() any {
			result := fields{}
			for range w.IntN(3) {
				result[w.name()] = w.pair()
			}
			return result
		},
		"free": func() any {
			return w.some(50, map[string]func() any{
				"a": func() any { return pick[any](w, "1", fields{"b": "2"}, []any{"3"}, fields{"b": fields{"c": true}}) },
				"b": func() any { return w.texts() }})
		},
		"status": func() any { return w.status() },
	})
	metadata := w.some(30, map[string]func() any{
		"labels":      func() any { return fields{w.name(): w.text(), w.name(): w.text()} },
		"annotations": func() any { return fields{w.name(): w.text(), w.name(): w.text()} },
		"finalizers":  func() any { return append(w.names(duplicates), "v") },
		"ownerReferences": func() any {
			result := []any{}
			for _, name := range append(w.names(false), "v") {
				result = append(result, fields{"apiVersion": "v1", "kind": "Example", "name": w.name(), "uid": name})
			}
			return result
		},
	})
	metadata["name"] = "a"
	result["apiVersion"], result["kind"], result["metadata"] = "v1", "Example", metadata
	return result
}

func (w writes) status() fields {
	return w.some(50, map[string]func() any{
		"phase": func() any { return w.text() },
		"conditions": func() any {
			result := []any{}
			for _, name := range w.names(false) {
				result = append(result, fields{"type": name, "status": w.text()})
			}
			return result
		},
	})
}

// mixed has each field of one of two objects.
func (w writes) mixed(live, other fields) fields {
	result := fields{}
	for _, side := range []fields{live, other} {
		for _, name := range sorted(side) {
			if _, ok := result[name]; !ok || w.chance(40) {
				result[name] = side[name]
			}
		}
	}
	for _, name := range sorted(result) {
		if w.chance(15) && name != "metadata" && name != "kind" && name != "apiVersion" {
			delete(result, name)
		}
	}
	return copied(result)
}

// step is a random write of an object.
func (w writes) step(live fields, number, length int) *step {
	managers := []string{"a", "b", "kubectl", "c<"}
	if length > 20 {
		for i := range 16 {
			managers = append(managers, fmt.Sprintf("m%d", i))
		}
	}
	s := &step{Manager: pick(w, managers...)}
	switch {
	case number == 0 && w.chance(60):
		s.Operation, s.Object = "create", w.object(true)
		if w.chance(20) {
			applied := copied(s.Object)
			text, _ := json.Marshal(applied)
			annotations, ok := s.Object["metadata"].(fields)["annotations"].(fields)
			if !ok {
				annotations = fields{}
			}
			annotations[lastApplied] = string(text)
			s.Object["metadata"].(fields)["annotations"] = annotations
		}
	case number > 0 && live["metadata"] != nil && w.chance(45):
		s.Operation = "update"
		if w.chance(20) {
			s.Subresource, s.Object = "status", copied(live)
			s.Object["status"] = w.status()
		} else {
			s.Object = w.mixed(live, w.object(true))
		}
		if metadata := s.Object["metadata"].(fields); w.chance(70) {
			delete(metadata, "managedFields")
		}
		delete(s.Object["metadata"].(fields), "uid")
	default:
		s.Operation, s.Object, s.Force = "apply", w.object(false), w.chance(40)
		if w.chance(30) && live["metadata"] != nil {
			s.Object = w.mixed(live, s.Object)
			metadata := s.Object["metadata"].(fields)
			delete(metadata, "managedFields")
			delete(metadata, "uid")
		}
		if number > 0 && w.chance(10) {
			s.Subresource, s.Object = "status", object(fields{"status": w.status()})
		}
	}
	return s
}

// sorted are the keys of a map in their order, so that random choices only depend on the seed.
func sorted[T any](values map[string]T) []string {
	return slices.Sorted(maps.Keys(values))
}
