//! The objects of a cluster as an [`ObjectStore`]: each operation is a request to the API server. The other store is slipway's own database
//! (`slipway_objects::embedded`); `contract` has the tests that both must pass.

#[cfg(test)]
mod contract;
mod requests;
mod watch;

use futures_util::Stream;
use serde_json::{Value, json};
use slipway_objects::patch::Patch;
use slipway_objects::store::{
    ApplyOptions, DeleteOptions, Deletion, ListOptions, ObjectStore, Page, Part, WatchEvent, WatchOptions,
    WriteOptions, Written,
};
use slipway_objects::{Error, Object, Resource};

use self::requests::{JSON, Parameters, Response, unreadable};
use crate::Api;

/// Number of objects of one request when a whole list is read.
const PAGE_SIZE: usize = 500;

/// The objects of a cluster; cheap to clone.
#[derive(Debug, Clone)]
pub struct ApiServer {
    api: Api,
}

impl ApiServer {
    /// The objects of the cluster of a client.
    pub fn new(api: Api) -> Self {
        Self { api }
    }

    /// The client.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Reads one page as the API server returns it.
    async fn page(&self, resource: &Resource, options: &ListOptions) -> Result<Page, Error> {
        let selection = &options.selection;
        let namespace = selection.namespace.as_deref().unwrap_or_default();
        let mut parameters = Parameters::of_selection(selection);
        parameters.add("continue", &options.continue_token);
        if options.limit > 0 {
            parameters.add("limit", &options.limit.to_string());
        }
        if let Some(version) = options.exact_version.filter(|_| options.continue_token.is_empty()) {
            parameters.add("resourceVersion", &version.to_string());
            parameters.add("resourceVersionMatch", "Exact");
        }
        let uri = requests::uri(resource, namespace, "", Part::Main, &parameters)?;
        let mut list = self.exchange(http::Request::get(uri), "", &Value::Null).await?.body;
        let items = list["items"].take();
        let items = serde_json::from_value::<Option<Vec<Value>>>(items).map_err(unreadable)?.unwrap_or_default();
        let metadata = &list["metadata"];
        Ok(Page {
            items: items.into_iter().map(|item| requests::object(resource, item)).collect::<Result<_, _>>()?,
            resource_version: requests::version(metadata)?,
            continue_token: metadata["continue"].as_str().unwrap_or_default().to_owned(),
            remaining: metadata["remainingItemCount"].as_i64(),
        })
    }

    /// The object in the response to a write.
    fn written(resource: &Resource, response: Response) -> Result<Written, Error> {
        let Response { is_created, warnings, body } = response;
        Ok(Written { object: requests::object(resource, body)?, warnings, is_created })
    }
}

impl ObjectStore for ApiServer {
    async fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Object, Error> {
        let uri = requests::uri(resource, namespace, requests::checked(name)?, Part::Main, &Parameters::default())?;
        let response = self.exchange(http::Request::get(uri), "", &Value::Null).await?;
        requests::object(resource, response.body)
    }

    async fn list(&self, resource: &Resource, options: &ListOptions) -> Result<Page, Error> {
        if options.limit > 0 {
            return self.page(resource, options).await;
        }
        // A whole list is read in pages, which have the version of the first one.
        let mut options = ListOptions { limit: PAGE_SIZE, ..options.clone() };
        let mut list = Page::default();
        loop {
            match self.page(resource, &options).await {
                Ok(page) => {
                    list.items.extend(page.items);
                    list.resource_version = page.resource_version;
                    options.continue_token = page.continue_token;
                }
                // Reading the pages took too long, so the list is read again at once.
                Err(error) if error.is_expired() && !list.items.is_empty() => {
                    let whole = ListOptions { limit: 0, continue_token: String::new(), ..options };
                    return self.page(resource, &whole).await;
                }
                Err(error) => return Err(error),
            }
            if options.continue_token.is_empty() {
                return Ok(list);
            }
        }
    }

    async fn watch(
        &self,
        resource: &Resource,
        options: WatchOptions,
    ) -> Result<impl Stream<Item = WatchEvent> + Send + 'static, Error> {
        watch::begin(self, resource, options).await
    }

    async fn create(
        &self,
        resource: &Resource,
        namespace: &str,
        object: Object,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let uri = requests::uri(resource, namespace, "", options.part, &Parameters::of_write(options))?;
        let body = requests::body(resource, object);
        Self::written(resource, self.exchange(http::Request::post(uri), JSON, &body).await?)
    }

    async fn update(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        mut object: Object,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let parameters = Parameters::of_write(options);
        let uri = requests::uri(resource, namespace, requests::checked(name)?, options.part, &parameters)?;
        if object.metadata.name.is_empty() {
            object.metadata.name = name.to_owned();
        }
        let body = requests::body(resource, object);
        Self::written(resource, self.exchange(http::Request::put(uri), JSON, &body).await?)
    }

    async fn patch(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        patch: &Patch,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let (media_type, body) = match patch {
            Patch::Json(body) => (Patch::JSON, body),
            Patch::Merge(body) => (Patch::MERGE, body),
            Patch::Strategic(body) => (Patch::STRATEGIC, body),
        };
        let parameters = Parameters::of_write(options);
        let uri = requests::uri(resource, namespace, requests::checked(name)?, options.part, &parameters)?;
        Self::written(resource, self.exchange(http::Request::patch(uri), media_type, body).await?)
    }

    async fn apply(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        configuration: &Value,
        options: &ApplyOptions,
    ) -> Result<Written, Error> {
        let mut parameters = Parameters::of_write(&options.write);
        parameters.add("force", if options.force { "true" } else { "" });
        let uri = requests::uri(resource, namespace, requests::checked(name)?, options.write.part, &parameters)?;
        let mut configuration = configuration.clone();
        if !options.create {
            // With the unique id of an object, a configuration does not create another one.
            let current = self.get(resource, namespace, name).await?;
            configuration["metadata"]["uid"] = json!(current.metadata.uid);
        }
        match self.exchange(http::Request::patch(uri), Patch::APPLY, &configuration).await {
            Err(Error::Conflict { .. }) if !options.create => {
                // The object was deleted meanwhile, or there is another conflict.
                let applied = self.get(resource, namespace, name).await;
                Err(applied.err().unwrap_or_else(|| resource.conflict(name, "the object was replaced by another one")))
            }
            response => Self::written(resource, response?),
        }
    }

    async fn delete(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deletion, Error> {
        let uri = requests::uri(resource, namespace, requests::checked(name)?, Part::Main, &Parameters::default())?;
        let body = requests::deletion(options);
        let Response { body, .. } = self.exchange(http::Request::delete(uri), JSON, &body).await?;
        if body["kind"] != "Status" {
            let object = requests::object(resource, body)?;
            let is_retained = !object.metadata.finalizers.is_empty()
                || object.metadata.deletion_grace_period_seconds.is_some_and(|seconds| seconds > 0);
            return Ok(if is_retained { Deletion::Pending(object) } else { Deletion::Deleted(object) });
        }
        let mut object = requests::object(resource, json!({"metadata": {"name": name, "namespace": namespace}}))?;
        object.metadata.uid = body["details"]["uid"].as_str().unwrap_or_default().to_owned();
        Ok(Deletion::Deleted(object))
    }
}
