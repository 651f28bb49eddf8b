//! Kubernetes objects on one machine: the model, rules and storage of the object API that `slipway up` serves.
//!
//! | module | contents |
//! |---|---|
//! | [`meta`], [`object`], [`encoded`] | an object: typed metadata and a JSON body; the same as text |
//! | [`name`] | valid names, labels and annotations |
//! | [`rule`] | rules of schemas in the Common Expression Language |
//! | [`definition`] | definitions of custom resources |
//! | [`schema`] | structural schemas: which fields a kind has, and of which types |
//! | [`selector`] | label and field selectors |
//! | [`fields`] | managed fields and server-side apply |
//! | [`patch`] | JSON patch, merge patch, strategic merge patch |
//! | [`resource`] | a resource: its names, scope, schema, columns and rules; and the registry of all of them |
//! | [`kinds`] | the kinds that every installation has: namespaces, config maps, secrets, events, runs, and the pods of runs |
//! | [`table`] | lists as the tables that `kubectl get` prints |
//! | [`discovery`], [`openapi`] | documents by which clients find resources and validate objects |
//! | [`protobuf`] | reads request bodies in Kubernetes' protobuf encoding |
//! | [`store`] | [`ObjectStore`](store::ObjectStore): what controllers and the API do with objects |
//! | [`controller`] | the loop of controllers: follows objects, queues what they concern, reconciles it with backoff |
//! | [`repo`] | all SQL |
//! | [`seal`] | encryption of secrets at rest |
//! | [`embedded`] | the store in slipway's own database, its change feed, and the garbage collector |
//! | [`error`] | errors, worded and coded as the Kubernetes API server does |
//!
//! Sources: the Kubernetes API conventions and the behaviour of `kube-apiserver` 1.36.

pub mod controller;
pub mod definition;
pub mod discovery;
pub mod embedded;
pub mod encoded;
pub mod error;
pub mod fields;
pub mod kinds;
pub mod meta;
pub mod name;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod repo;
pub mod resource;
pub mod rule;
pub mod schema;
pub mod seal;
pub mod selector;
pub mod store;
pub mod table;

pub use encoded::Encoded;
pub use error::{Error, FieldError, Status};
pub use object::Object;
pub use repo::MIGRATION;
pub use resource::{Registry, Resource};
