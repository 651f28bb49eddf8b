//! The remote and item that a request names, and the permission that its handler needs.

use std::marker::PhantomData;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use slipway_access::refusal::Refusal;
use slipway_access::{Decision, Resource, Verb};

use super::error::error_response;
use crate::error::DataError;
use crate::layout::Item;
use crate::service::{Place, Service};

/// An operation on a remote.
pub(crate) trait Operation {
    /// The verb of the permission.
    const VERB: Verb;
    /// Whether a run may do it in its own namespace.
    const BY_RUNS: bool = true;
    /// Whether only administrators of the installation may do it.
    const BY_ADMINISTRATORS: bool = false;
}

/// Reads items.
pub(super) struct Reading;
/// Lists all items.
pub(super) struct Listing;
/// Adds items.
pub(super) struct Creating;
/// Removes items. The results of other runs depend on them, so runs may not.
pub(super) struct Deleting;

impl Operation for Reading {
    const VERB: Verb = Verb::Get;
}
impl Operation for Listing {
    const VERB: Verb = Verb::List;
}
impl Operation for Creating {
    const VERB: Verb = Verb::Create;
}
impl Operation for Deleting {
    const VERB: Verb = Verb::Delete;
    const BY_RUNS: bool = false;
}

/// The parameters of the path.
#[derive(Default)]
pub(crate) struct Named {
    pub(crate) namespace: Option<String>,
    pub(crate) repository: String,
    remote: String,
    path: String,
    number: String,
}

/// Reads the parameters of the path, and authorizes the caller in the namespace.
pub(crate) async fn authorize<O: Operation, S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<Named, Response> {
    let Some(decision) = parts.extensions.get::<Decision>().cloned() else {
        return Err(Refusal::Unguarded.response(&parts.headers));
    };
    let params = RawPathParams::from_request_parts(parts, state).await.map_err(IntoResponse::into_response)?;
    let mut named = Named::default();
    for (name, value) in &params {
        match name {
            "namespace" => named.namespace = Some(value.to_owned()),
            "repository" => value.clone_into(&mut named.repository),
            "remote" => value.clone_into(&mut named.remote),
            "path" => value.clone_into(&mut named.path),
            "number" => value.clone_into(&mut named.number),
            _ => {}
        }
    }
    let namespace = named.namespace.as_deref().unwrap_or(decision.installation());
    let authorized = match O::BY_RUNS {
        _ if O::BY_ADMINISTRATORS => {
            decision.authorize(O::VERB, Resource::Installation, Some(decision.installation())).await
        }
        true => decision.authorize_or_own_run(O::VERB, Resource::Data, namespace).await,
        false => decision.authorize(O::VERB, Resource::Data, Some(namespace)).await,
    };
    authorized.map_err(|refusal| refusal.response(&parts.headers))?;
    Ok(named)
}

/// A remote, on which the caller may do the operation `O`.
pub(super) struct Target<O> {
    pub(super) place: Place,
    path: String,
    number: String,
    operation: PhantomData<O>,
}

impl<O> Target<O> {
    /// The item at the path.
    pub(super) fn item(&self) -> Result<Item, DataError> {
        Item::parse(&self.path).ok_or_else(|| DataError::ItemName(self.path.clone()))
    }

    /// The number of the part.
    pub(super) fn number(&self) -> Result<u32, DataError> {
        self.number.parse().map_err(|_| DataError::ItemName(format!("{}/{}", self.number, self.path)))
    }
}

impl<O: Operation + Send> FromRequestParts<Service> for Target<O> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, service: &Service) -> Result<Self, Response> {
        let named = authorize::<O, _>(parts, service).await?;
        let place = Place::new(named.namespace.as_deref(), &named.remote).map_err(|error| error_response(&error))?;
        Ok(Self { place, path: named.path, number: named.number, operation: PhantomData })
    }
}

/// The remotes of a namespace, which the caller may list.
pub(super) struct Folder {
    pub(super) namespace: Option<String>,
}

impl FromRequestParts<Service> for Folder {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, service: &Service) -> Result<Self, Response> {
        Ok(Self { namespace: authorize::<Listing, _>(parts, service).await?.namespace })
    }
}
