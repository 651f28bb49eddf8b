//! What a write does to the managers of an object, and what an applied configuration does to the object.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::compare::{Comparison, compare};
use super::element::equal;
use super::last_applied;
use super::managers::{APPLY, ManagerId, Managers, Owned, UPDATE, sort_by_message};
use super::merge::merge;
use super::remove::without;
use super::set::{Set, path_text};
use super::typed::{Type, field_set, reconcile, validate};
use crate::error::{Conflict, Error};
use crate::meta::ManagedFieldsEntry;
use crate::object::Object;
use crate::resource::Resource;
use crate::store::Part;

/// The manager of the fields that an object had before it was applied first.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The field with the observed state, which only writes of the status own.
const STATUS: &str = "status";
/// The route of the finalizers of a namespace.
const FINALIZE: &str = "finalize";

/// The fields that no manager owns, because they identify the object or are set by the server.
static UNMANAGED: LazyLock<Set> = LazyLock::new(|| {
    Set::of_fields(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
});

/// A client that writes objects of a resource.
#[derive(Debug, Clone, Copy)]
pub struct Tracker<'a> {
    /// The resource of the objects.
    pub resource: &'a Resource,
    /// The name of the client.
    pub manager: &'a str,
    /// The part that is written.
    pub part: Part,
    /// The current time in milliseconds.
    pub now: i64,
}

/// The result of an applied configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The object, without its managers; `None` if it is unchanged.
    pub object: Option<Value>,
    /// Its managers.
    pub managers: Managers,
}

/// Why a configuration cannot be applied.
enum Failure {
    Conflicts(Vec<(ManagerId, Set)>),
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// Whether managed fields in a request remove all managers.
fn is_reset(entries: &[ManagedFieldsEntry]) -> bool {
    match entries {
        [] => true,
        [one] => *one == ManagedFieldsEntry::default(),
        _ => false,
    }
}

/// An object as JSON, without its managers.
fn fields_of(object: &Object) -> Value {
    let mut metadata = object.metadata.clone();
    metadata.managed_fields = None;
    let mut fields = object.body.clone();
    fields.insert("apiVersion".into(), json!(object.api_version));
    fields.insert("kind".into(), json!(object.kind));
    fields.insert("metadata".into(), json!(metadata));
    Value::Object(fields)
}

impl Tracker<'_> {
    fn root(&self) -> Type<'_> {
        Type::Declared(&self.resource.schema)
    }

    fn subresource(&self) -> &'static str {
        match self.part {
            Part::Main => "",
            Part::Status => STATUS,
            Part::Finalizers => FINALIZE,
        }
    }

    /// The fields of a set that this write can change.
    fn written(&self, set: Set) -> Set {
        match self.part {
            Part::Status => set.only(STATUS),
            Part::Main | Part::Finalizers if self.resource.has_status => {
                set.difference_with_descendants(&Set::of_fields(&[&[STATUS]]))
            }
            Part::Main | Part::Finalizers => set,
        }
    }

    /// An object with only the fields that every object of the kind has.
    fn empty(&self) -> Object {
        let mut object = Object {
            api_version: self.resource.api_version(),
            kind: self.resource.kind.to_owned(),
            ..Object::default()
        };
        (self.resource.rules.fill)(&mut object);
        object
    }

    /// Sets the managers of a new state of an object, which is created without `live`. Managed fields in the new state replace those of the
    /// object, unless they are malformed; empty ones remove them.
    pub fn update(&self, live: Option<&Object>, new: &mut Object) {
        let given = new.metadata.managed_fields.take();
        let stored = || {
            let entries = live.and_then(|live| live.metadata.managed_fields.as_deref()).unwrap_or_default();
            Managers::decode(entries).unwrap_or_default()
        };
        let mut managers = match &given {
            _ if self.part == Part::Status => stored(),
            Some(given) if is_reset(given) => Managers::default(),
            Some(given) => match Managers::decode(given) {
                Ok(managers) if !managers.is_empty() => managers,
                _ => stored(),
            },
            None => stored(),
        };
        if managers.is_empty() && live.is_some() {
            // Objects without managers get some when they are applied first.
            return;
        }
        let id = ManagerId::new(self.manager, UPDATE, &self.resource.api_version(), self.subresource());
        let before = fields_of(live.unwrap_or(&self.empty()));
        self.record(&before, &fields_of(new), &mut managers, id);
        managers.cap();
        new.metadata.managed_fields = managers.encode();
    }

    /// Records that a manager changed an object from one state to another.
    fn record(&self, before: &Value, after: &Value, managers: &mut Managers, id: ManagerId) {
        self.reconcile(managers);
        let Comparison { removed, modified, added } = self.compare(before, after);
        let mut set = modified;
        set.extend(added);
        let lost = set.union(&removed);
        managers.0.retain(|_, owned| {
            owned.set = owned.set.difference(&lost);
            !owned.set.is_empty()
        });
        let set = set.difference(&UNMANAGED);
        if set.is_empty() {
            return;
        }
        let api_version = self.resource.api_version();
        let owned = managers.0.entry(id).or_insert_with(|| Owned { set: Set::default(), api_version, time: None });
        owned.set.extend(set);
        owned.time = Some(self.now);
    }

    fn compare(&self, before: &Value, after: &Value) -> Comparison {
        let Comparison { removed, modified, added } = compare(before, after, self.root());
        let [removed, modified, added] = [removed, modified, added].map(|set| self.written(set));
        Comparison { removed, modified, added }
    }

    /// Drops managers of versions that do not exist, and adapts the fields of the others to the schema.
    fn reconcile(&self, managers: &mut Managers) {
        let version = self.resource.api_version();
        managers.0.retain(|_, owned| {
            reconcile(&mut owned.set, self.root());
            owned.api_version == version
        });
    }

    /// The object and its managers after a configuration was applied. Without `live`, the object does not exist yet.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a configuration of another kind or with managed fields, [`Error::Unmergeable`] for one that does not fit the
    /// schema, [`Error::ApplyConflict`] if other managers have fields of it with other values and `force` is not set.
    pub fn apply(&self, live: Option<&Object>, configuration: &Value, force: bool) -> Result<Outcome, Error> {
        let text = |field: &str| configuration[field].as_str().unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        if api_version != self.resource.api_version() || kind != self.resource.kind {
            let version = if api_version.contains('/') { api_version.to_owned() } else { format!("/{api_version}") };
            return Err(Error::BadRequest(format!("invalid object type: {version}, Kind={kind}")));
        }
        let live = live.cloned().unwrap_or_else(|| self.empty());
        let managers = Managers::decode(live.metadata.managed_fields.as_deref().unwrap_or_default())
            .map_err(|detail| Error::Unmergeable(format!("failed to decode managed fields: {detail}")))?;
        let live_fields = fields_of(&live);
        let result = match self.apply_to(&live_fields, configuration, managers.clone(), force) {
            Err(Failure::Conflicts(conflicts)) if self.manager == last_applied::MANAGER => {
                let left = self.conflicts_with_others(&live, &live_fields, conflicts);
                if left.is_empty() {
                    self.apply_to(&live_fields, configuration, managers, true)
                } else {
                    Err(Failure::Conflicts(left))
                }
            }
            other => other,
        };
        let mut outcome = result.map_err(|failure| match failure {
            Failure::Other(error) => error,
            Failure::Conflicts(conflicts) => Error::ApplyConflict(described(conflicts)),
        })?;
        if self.manager == last_applied::MANAGER {
            last_applied::refresh(&mut outcome.object, &live_fields, configuration);
        }
        Ok(outcome)
    }

    /// The conflicts that are left if those are ignored whose fields still are as client-side apply set them.
    fn conflicts_with_others(
        &self,
        live: &Object,
        live_fields: &Value,
        conflicts: Vec<(ManagerId, Set)>,
    ) -> Vec<(ManagerId, Set)> {
        let Some(applied) = last_applied::configuration(live, self.resource) else { return conflicts };
        if validate(&applied, self.root()).is_err() || validate(live_fields, self.root()).is_err() {
            return conflicts;
        }
        let Comparison { removed, modified, added } = compare(&applied, live_fields, self.root());
        let own = field_set(&applied, self.root()).difference(&modified).difference(&added).difference(&removed);
        let others = |(id, set): (ManagerId, Set)| (id, set.difference(&own));
        conflicts.into_iter().map(others).filter(|(_, set)| !set.is_empty()).collect()
    }

    fn apply_to(
        &self,
        live: &Value,
        configuration: &Value,
        mut managers: Managers,
        force: bool,
    ) -> Result<Outcome, Failure> {
        let version = self.resource.api_version();
        if managers.is_empty() {
            let id = ManagerId::new(BEFORE_FIRST_APPLY, UPDATE, &version, self.subresource());
            self.record(&fields_of(&self.empty()), live, &mut managers, id);
            managers.cap();
        }
        if configuration["metadata"]["managedFields"].is_array() {
            return Err(Error::BadRequest("metadata.managedFields must be nil".into()).into());
        }
        validate(configuration, self.root()).map_err(|detail| {
            let object = self.resource.described(configuration);
            Error::Unmergeable(format!("failed to create typed patch object ({object}): {detail}"))
        })?;
        self.reconcile(&mut managers);
        let merged = merge(live, configuration, self.root())
            .map_err(|detail| Error::Unmergeable(format!("failed to merge config: {detail}")))?;
        let id = ManagerId::new(self.manager, APPLY, &version, self.subresource());
        let last = managers.0.remove(&id);
        let set = self.written(field_set(configuration, self.root()));
        let time = last.as_ref().and_then(|last| last.time);
        managers.0.insert(id.clone(), Owned { set, api_version: version, time });
        let new = match last {
            Some(last) if !last.set.is_empty() => self.pruned(merged, &managers, &last.set),
            _ => merged,
        };
        self.take_over(live, &new, &mut managers, &id, force).map_err(Failure::Conflicts)?;
        let is_changed = !equal(&new, live);
        if let Some(owned) = managers.0.get_mut(&id) {
            owned.set = owned.set.difference(&UNMANAGED);
            if is_changed {
                owned.time = Some(self.now);
            }
            if owned.set.is_empty() {
                managers.0.remove(&id);
            }
        }
        Ok(Outcome { object: is_changed.then_some(new), managers })
    }

    /// Takes the fields in which two states differ from all managers but one.
    ///
    /// # Errors
    /// The fields that are changed, by their managers, unless the change is forced.
    fn take_over(
        &self,
        before: &Value,
        after: &Value,
        managers: &mut Managers,
        id: &ManagerId,
        force: bool,
    ) -> Result<(), Vec<(ManagerId, Set)>> {
        let Comparison { removed, modified, added } = self.compare(before, after);
        let mut changed = modified;
        changed.extend(added);
        let others = managers.0.iter().filter(|(other, _)| *other != id);
        let conflicts = others.map(|(other, owned)| (other.clone(), owned.set.intersection(&changed)));
        let conflicts: Vec<(ManagerId, Set)> = conflicts.filter(|(_, set)| !set.is_empty()).collect();
        if !force && !conflicts.is_empty() {
            return Err(conflicts);
        }
        changed.extend(removed);
        managers.0.retain(|other, owned| {
            if other != id {
                owned.set = owned.set.difference(&changed);
            }
            !owned.set.is_empty()
        });
        Ok(())
    }

    /// The merged object without the fields that the manager applied last time, does not apply now, and no other manager has.
    fn pruned(&self, merged: Value, managers: &Managers, last: &Set) -> Value {
        let named = |set: &Set| set.with_named_fields(Some(self.root()));
        let (last, all) = (named(last), named(&field_set(&merged, self.root())));
        let mut managed = Set::default();
        for owned in managers.0.values() {
            managed.extend(owned.set.clone());
        }
        let mut kept = named(&field_set(&without(&merged, &last, self.root()), self.root()));
        kept.extend(named(&managed));
        let pruned = without(&merged, &all.difference(&kept), self.root());
        // Fields below a removed one are kept if this manager did not apply them.
        let kept = named(&field_set(&pruned, self.root()));
        without(&merged, &all.difference(&kept).intersection(&last), self.root())
    }
}

/// Conflicts as messages list them.
fn described(mut conflicts: Vec<(ManagerId, Set)>) -> Vec<Conflict> {
    sort_by_message(&mut conflicts);
    let each = |(id, set): (ManagerId, Set)| {
        let manager = id.describe();
        set.paths().into_iter().map(move |path| Conflict { manager: manager.clone(), field: path_text(&path) })
    };
    conflicts.into_iter().flat_map(each).collect()
}
