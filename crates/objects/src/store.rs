//! What controllers and the API do with objects. Two stores are possible: slipway's own database ([`Embedded`](crate::embedded::Embedded)),
//! and the API server of a cluster.

use futures_util::Stream;
use serde_json::Value;

use crate::error::Error;
use crate::object::Object;
use crate::patch::Patch;
use crate::resource::{FieldValidation, Resource};
use crate::selector::{FieldSelector, LabelSelector};

/// Which objects a list or watch contains.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only objects of this namespace; `None` for those of all namespaces.
    pub namespace: Option<String>,
    /// Only objects with these labels.
    pub labels: LabelSelector,
    /// Only objects with these values of fields.
    pub fields: FieldSelector,
}

impl Selection {
    /// Whether an object is selected.
    pub fn matches(&self, resource: &Resource, object: &Object) -> bool {
        let field = |r: &crate::selector::FieldRequirement| {
            resource.selectable_value(object, &r.field).is_some_and(|value| (value == r.value) == r.equal)
        };
        self.namespace.as_ref().is_none_or(|namespace| *namespace == object.metadata.namespace)
            && self.labels.matches(&object.metadata.labels)
            && self.fields.requirements().iter().all(field)
    }

    /// Whether all objects of the namespace are selected, whatever they contain.
    pub fn is_unconditional(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Refuses fields that the kind cannot be selected by.
    ///
    /// # Errors
    /// [`Error::BadRequest`] with the name of the field.
    pub fn check(&self, resource: &Resource) -> Result<(), Error> {
        let nothing = Object::default();
        match self.fields.requirements().iter().find(|r| resource.selectable_value(&nothing, &r.field).is_none()) {
            Some(r) if resource.group.is_empty() && resource.selectable.is_empty() => Err(Error::BadRequest(format!(
                "{:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                r.field
            ))),
            Some(r) => Err(Error::BadRequest(format!("field label not supported: {}", r.field))),
            None => Ok(()),
        }
    }
}

/// Which version and how much of a list to return.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Which objects.
    pub selection: Selection,
    /// Maximum number of objects; 0 for all.
    pub limit: usize,
    /// Where the last page ended; empty for the first page.
    pub continue_token: String,
    /// Exactly this version of the list, which must still be retained.
    pub exact_version: Option<i64>,
}

/// A page of a list, of objects or of their texts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page<T = Object> {
    /// The objects, by namespace and name.
    pub items: Vec<T>,
    /// The version of the list; a watch can start there.
    pub resource_version: i64,
    /// The token of the next page; empty on the last page.
    pub continue_token: String,
    /// The number of objects on later pages, if it is known.
    pub remaining: Option<i64>,
}

impl<T> Page<T> {
    /// The same page with other items.
    ///
    /// # Errors
    /// The first one of `change`.
    pub fn try_map<U>(self, change: impl FnMut(T) -> Result<U, Error>) -> Result<Page<U>, Error> {
        let Self { items, resource_version, continue_token, remaining } = self;
        let items = items.into_iter().map(change).collect::<Result<_, _>>()?;
        Ok(Page { items, resource_version, continue_token, remaining })
    }
}

/// Where a watch begins, and how it continues.
#[derive(Debug, Clone, Default)]
pub struct WatchOptions {
    /// Which objects.
    pub selection: Selection,
    /// Only changes after this version; `None` begins with the current objects.
    pub after: Option<i64>,
    /// Whether the current objects are followed by a bookmark that marks their end.
    pub send_initial_events: bool,
    /// Whether the watch contains bookmarks.
    pub bookmarks: bool,
}

/// An event of a watch, with objects or with their texts.
#[derive(Debug)]
pub enum WatchEvent<T = Object> {
    /// An object was created, or is selected now.
    Added(T),
    /// An object was changed.
    Modified(T),
    /// An object was deleted, or is no longer selected.
    Deleted(T),
    /// All changes up to this version were sent.
    Bookmark {
        /// The version.
        version: i64,
        /// Whether this bookmark ends the initial objects.
        initial_end: bool,
    },
    /// The watch ends with an error.
    Failed(Error),
}

impl<T> WatchEvent<T> {
    /// The same event with another form of the object; an error ends the watch.
    pub fn try_map<U>(self, change: impl FnOnce(T) -> Result<U, Error>) -> WatchEvent<U> {
        let (event, object): (fn(U) -> WatchEvent<U>, T) = match self {
            Self::Added(object) => (WatchEvent::Added, object),
            Self::Modified(object) => (WatchEvent::Modified, object),
            Self::Deleted(object) => (WatchEvent::Deleted, object),
            Self::Bookmark { version, initial_end } => return WatchEvent::Bookmark { version, initial_end },
            Self::Failed(error) => return WatchEvent::Failed(error),
        };
        change(object).map_or_else(WatchEvent::Failed, event)
    }
}

/// A part of an object with a route of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Part {
    /// All but the status, if that has a route of its own.
    #[default]
    Main,
    /// Only the status.
    Status,
    /// All but the status, with the finalizers in the specification, which [`Part::Main`] does not change.
    Finalizers,
}

/// How an object is written.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Check everything, but change nothing.
    pub dry_run: bool,
    /// What happens with unknown fields of a patched object.
    pub validation: FieldValidation,
    /// Which part is written.
    pub part: Part,
    /// The client, as a manager of fields; empty if it is unknown.
    pub manager: String,
    /// Warnings about fields that the patch itself has more than once.
    pub duplicates: Vec<String>,
}

/// How a configuration is applied.
#[derive(Debug, Clone, Default)]
pub struct ApplyOptions {
    /// How the object is written.
    pub write: WriteOptions,
    /// Whether fields are taken over from other managers.
    pub force: bool,
    /// Whether the object may be created.
    pub create: bool,
}

/// The result of a write.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// The object as it is now.
    pub object: Object,
    /// Warnings for the client.
    pub warnings: Vec<String>,
    /// Whether the object did not exist before.
    pub is_created: bool,
}

/// What happens with the dependents of a deleted object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// They are deleted after it.
    #[default]
    Background,
    /// They are deleted before it.
    Foreground,
    /// They are retained.
    Orphan,
}

/// How an object is deleted.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Check everything, but change nothing.
    pub dry_run: bool,
    /// What happens with its dependents; by default that which the object's finalizers say, or background.
    pub propagation: Option<Propagation>,
    /// Delete only the object with this unique id.
    pub uid: Option<String>,
    /// Delete only this version.
    pub resource_version: Option<String>,
}

/// The result of a deletion.
#[derive(Debug, Clone, PartialEq)]
pub enum Deletion {
    /// The object was deleted: its last state, or only its name, namespace and unique id if the store reports no more.
    Deleted(Object),
    /// The object will be deleted once its finalizers are removed.
    Pending(Object),
}

/// A store of objects. Every change gets a version, and versions only grow.
pub trait ObjectStore: Send + Sync {
    /// Reads an object.
    fn get(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> impl Future<Output = Result<Object, Error>> + Send;

    /// Reads a page of a list.
    fn list(&self, resource: &Resource, options: &ListOptions) -> impl Future<Output = Result<Page, Error>> + Send;

    /// Follows the changes of objects. No change is missed or repeated.
    fn watch(
        &self,
        resource: &Resource,
        options: WatchOptions,
    ) -> impl Future<Output = Result<impl Stream<Item = WatchEvent> + Send + 'static, Error>> + Send;

    /// Creates an object, with a generated name if it has none.
    fn create(
        &self,
        resource: &Resource,
        namespace: &str,
        object: Object,
        options: &WriteOptions,
    ) -> impl Future<Output = Result<Written, Error>> + Send;

    /// Replaces an object; if the new one has a resource version, only that version.
    fn update(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        object: Object,
        options: &WriteOptions,
    ) -> impl Future<Output = Result<Written, Error>> + Send;

    /// Changes parts of an object.
    fn patch(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        patch: &Patch,
        options: &WriteOptions,
    ) -> impl Future<Output = Result<Written, Error>> + Send;

    /// Merges a configuration into an object, which is created if it does not exist. Fields that the same manager applied last time and does
    /// not apply now are removed.
    fn apply(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        configuration: &Value,
        options: &ApplyOptions,
    ) -> impl Future<Output = Result<Written, Error>> + Send;

    /// Deletes an object, or requests its deletion if it has finalizers.
    fn delete(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> impl Future<Output = Result<Deletion, Error>> + Send;
}

/// Reads a resource version of a request; `None` for an empty one.
///
/// # Errors
/// [`Error::BadRequest`] if it is not a number.
pub fn parse_version(text: &str) -> Result<Option<i64>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = || {
        let value = Value::from(text);
        Error::BadRequest(format!(
            "invalid resource version: resourceVersion: Invalid value: {value}: strconv.ParseUint: parsing {value}: invalid syntax"
        ))
    };
    text.parse::<i64>().ok().filter(|version| *version >= 0).map(Some).ok_or_else(invalid)
}
