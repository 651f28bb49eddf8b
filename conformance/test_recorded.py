"""Tests of the recordings and of the comparisons that use them: a real difference is found, and a recording that is not valid is not used.

    python3 -m unittest discover conformance
"""

import importlib.util
import json
import pathlib
import sys
import tempfile
import unittest

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER / "mlflow")]
from compare import request_of
from normalize import Normalizer
from recorded import Recordings, Stale, differences, module_version, pinned

RUN, OTHER = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"


def never():
    raise AssertionError("the original must not be started")


class Recorded(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name, "recorded")
        self.live = Recordings(self.folder, "helm v1", live=True)
        self.live.response("a b", {"values": 1}, lambda: {"z": (1, 2), "a": "größe"})

    def test_a_recording_is_readable_and_equal_in_both_modes(self):
        text = (self.folder / "a-b.json").read_text("utf-8")
        self.assertEqual(list(json.loads(text)["response"]), ["a", "z"])
        self.assertIn("größe", text)
        recorded = Recordings(self.folder, "helm v1", live=False).response("a b", {"values": 1}, never)
        self.assertEqual(recorded, {"a": "größe", "z": [1, 2]})
        self.assertEqual(self.live.response("a b", {"values": 1}, lambda: recorded), recorded)
        self.assertEqual((self.folder / "a-b.json").read_text("utf-8"), text)

    def test_a_recording_of_another_request_or_version_is_not_used(self):
        for original, name, request in [("helm v1", "a b", {"values": 2}), ("helm v2", "a b", {"values": 1}), ("helm v1", "new", {"values": 1})]:
            with self.assertRaisesRegex(Stale, "LIVE=1"):
                Recordings(self.folder, original, live=False).response(name, request, never)

    def test_a_recording_without_a_case_is_a_complaint_and_deleted_live(self):
        self.assertEqual(self.live.finish(), [])
        self.assertIn("a-b.json", Recordings(self.folder, "helm v1", live=False).finish()[0])
        self.assertEqual(Recordings(self.folder, "helm v1", live=True).finish(), [])
        self.assertEqual([*self.folder.iterdir()], [])

    def test_differences_are_found_at_every_depth(self):
        original = {"runs": [{"id": 1, "note": None}, {"id": 2}], "done": True}
        self.assertEqual(list(differences(original, json.loads(json.dumps(original)))), [])
        for slipway in [{**original, "done": 1}, {**original, "more": None}, {"done": True}, {**original, "runs": original["runs"][:1]},
                        {**original, "runs": [{"id": 1}, {"id": 2}]}, {**original, "runs": [{"id": 1.0, "note": None}, {"id": 2}]},
                        {**original, "runs": original["runs"][::-1]}, [], None]:
            self.assertTrue(list(differences(original, slipway)), slipway)

    def test_versions_come_from_the_files_that_pin_them(self):
        self.assertIn("mlflow", pinned(FOLDER / "mlflow/requirements.txt"))
        self.assertTrue(module_version(FOLDER / "originals.txt", "helm.sh/helm/v3/cmd/helm").startswith("v3."))
        self.assertTrue(module_version(FOLDER / "kube/plugin/go.mod", "github.com/NVIDIA/k8s-device-plugin").startswith("v0."))
        with self.assertRaises(SystemExit):
            module_version(FOLDER / "originals.txt", "example.org/nothing")


class Normalized(unittest.TestCase):
    def normalize(self, *values, scenario="model_search", first=4, last=6):
        return Normalizer(scenario, first, last)(list(values))

    def test_random_values_do_not_count(self):
        response = lambda run, server, time, name: [{"run_id": run, "uri": f"http://127.0.0.1:{server}/{run}"}, time, f"run {name} of {run} at {time}"]
        self.assertEqual(self.normalize(*response(RUN, 4711, 1_790_000_000_000, "busy-ant-12")),
                         self.normalize(*response(OTHER, 815, 1_790_000_012_345, "calm-bee-345")))

    def test_the_id_of_another_run_is_a_difference(self):
        listed = lambda *ids: self.normalize({"runs": [{"run_id": id, "uri": f"mlflow-artifacts:/5/{id}"} for id in ids]}, ids[0])
        self.assertEqual(listed(RUN, OTHER), listed(OTHER, RUN))
        self.assertNotEqual(listed(RUN, OTHER), listed(RUN, RUN))
        self.assertNotEqual(self.normalize(RUN, OTHER, RUN), self.normalize(RUN, OTHER, OTHER))
        self.assertNotEqual(self.normalize({"run_id": RUN, "uri": f"x/{RUN}"}), self.normalize({"run_id": RUN, "uri": f"x/{OTHER}"}))

    def test_ids_are_numbered_by_content_and_not_by_the_order_of_keys(self):
        self.assertEqual(self.normalize({"a": RUN, "b": OTHER}), self.normalize({"b": OTHER, "a": RUN}))
        pairs = [{"key": "a", "value": RUN}, {"key": "b", "value": OTHER}]
        self.assertEqual(self.normalize(pairs), self.normalize(pairs[::-1]))

    def test_experiments_count_from_the_first_of_the_scenario(self):
        response = lambda id: [{"experiment_id": str(id), "uri": f"mlflow-artifacts:/{id}/x"}, f"No Experiment with id={id} exists"]
        self.assertEqual(self.normalize(*response(5)), self.normalize(*response(31), first=30, last=32))
        self.assertNotEqual(self.normalize(*response(5)), self.normalize(*response(6)))
        self.assertNotEqual(self.normalize(*response(5)), self.normalize(*response(4)))
        self.assertEqual(self.normalize(*response(99999)), response(99999))

    def test_constants_of_a_scenario_count(self):
        for constant in ["0" * 32, "model-search-1", 2_000_000_000_000, 1000, "1.7.13"]:
            self.assertEqual(self.normalize(constant), [constant])
        self.assertNotEqual(self.normalize("model-search-0", "model-search-1"), self.normalize("model-search-1", "model-search-0"))

    def test_lists_without_keys_keep_their_order(self):
        self.assertNotEqual(self.normalize(["b", "a"]), self.normalize(["a", "b"]))


class Requests(unittest.TestCase):
    SOURCE = "class World: pass\n\ndef helper(w):\n    return 1\n\ndef other(w):\n    return 2\n\ndef scenario(w):\n    return [helper(x) for x in w]\n"

    def request(self, source):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "scenarios_of_a_test.py")
            path.write_text(source)
            spec = importlib.util.spec_from_file_location(f"scenarios_{abs(hash(source))}", path)
            module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            self.addCleanup(sys.modules.pop, spec.name)
            spec.loader.exec_module(module)
            return request_of(module.scenario)

    def test_a_request_changes_with_the_scenario_and_what_it_uses(self):
        request = self.request(self.SOURCE)
        self.assertEqual(self.request(self.SOURCE + "\n"), request)
        self.assertEqual(self.request(self.SOURCE.replace("return 2", "return 3")), request)
        for old, new in [("in w]", "in w if x]"), ("return 1", "return 3"), ("pass", "name = 1")]:
            self.assertNotEqual(self.request(self.SOURCE.replace(old, new)), request, new)


if __name__ == "__main__":
    unittest.main()
