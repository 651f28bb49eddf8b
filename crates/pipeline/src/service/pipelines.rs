//! Pipelines and their versions.

use slipway_core::clock::now_ms;
use slipway_store::sql::Connection;

use super::{Service, blocking, check_description, check_length, ids, package, specification};
use crate::Error;
use crate::entity::{Pipeline, StoredSpec, Tags, Version};
use crate::listing::{ListRequest, Listing};
use crate::repo::{self, Page};

/// Maximum number of tags of a pipeline or version.
const MAX_TAGS: usize = 20;
/// Maximum characters of a tag's key or value.
const MAX_TAG: usize = 63;

/// A pipeline to create.
#[derive(Debug, Clone, Default)]
pub struct NewPipeline {
    /// Namespace.
    pub namespace: String,
    /// Name; empty: that of `display_name`.
    pub name: String,
    /// Name that users see; empty: that of `name`.
    pub display_name: String,
    /// Description.
    pub description: String,
    /// Tags.
    pub tags: Tags,
}

/// A version to create.
#[derive(Debug, Clone, Default)]
pub struct NewVersion {
    /// Name; empty: that of `display_name`.
    pub name: String,
    /// Name that users see; empty: that of `name`.
    pub display_name: String,
    /// Description.
    pub description: String,
    /// URL that the package was downloaded from; empty if it was uploaded.
    pub package_url: String,
    /// URL of the source code; may be empty.
    pub code_source_url: String,
    /// Tags.
    pub tags: Tags,
}

fn names(name: &str, display_name: &str) -> Result<(String, String), Error> {
    let name = if name.is_empty() { display_name } else { name };
    if name.is_empty() {
        return Err(Error::Invalid("name is required".into()));
    }
    let display_name = if display_name.is_empty() { name } else { display_name };
    Ok((name.to_owned(), display_name.to_owned()))
}

fn check_tags(tags: &Tags) -> Result<(), Error> {
    if tags.len() > MAX_TAGS {
        return Err(Error::Invalid(format!(
            "number of tags ({}) exceeds maximum of {MAX_TAGS} per entity",
            tags.len()
        )));
    }
    for (key, value) in tags {
        let reason = if key.is_empty() {
            "tag key cannot be empty".to_owned()
        } else if key.contains('.') {
            format!("tag key {key:?} must not contain '.' character")
        } else if key.chars().count() > MAX_TAG {
            format!("tag key {key:?} exceeds maximum length of {MAX_TAG} characters")
        } else if value.chars().count() > MAX_TAG {
            format!("tag value {value:?} for key {key:?} exceeds maximum length of {MAX_TAG} characters")
        } else {
            continue;
        };
        return Err(Error::Invalid(reason));
    }
    Ok(())
}

fn pipeline(new: NewPipeline) -> Result<Pipeline, Error> {
    let (name, display_name) = names(&new.name, &new.display_name)?;
    check_length("Pipeline.Name", &name, 128)?;
    check_length("Pipeline.DisplayName", &display_name, 1024)?;
    check_length("Pipeline.Namespace", &new.namespace, 63)?;
    check_description(&new.description)?;
    check_tags(&new.tags)?;
    Ok(Pipeline {
        pipeline_id: ids::random(),
        namespace: new.namespace,
        name,
        display_name,
        description: new.description,
        created_at: now_ms(),
        tags: new.tags,
    })
}

fn version(pipeline_id: &str, new: NewVersion, spec: &StoredSpec) -> Result<Version, Error> {
    let (name, display_name) = names(&new.name, &new.display_name)?;
    check_length("PipelineVersion.Name", &name, 127)?;
    check_length("PipelineVersion.DisplayName", &display_name, 1024)?;
    check_length("PipelineVersion.CodeSourceUrl", &new.code_source_url, 4096)?;
    check_description(&new.description)?;
    check_tags(&new.tags)?;
    Ok(Version {
        version_id: ids::random(),
        pipeline_id: pipeline_id.to_owned(),
        name,
        display_name,
        description: new.description,
        created_at: now_ms(),
        package_url: new.package_url,
        code_source_url: new.code_source_url,
        spec: spec.digest.clone(),
        tags: new.tags,
    })
}

fn insert_version(c: &Connection, version: &Version, spec: &StoredSpec) -> Result<(), Error> {
    repo::specs::insert(c, spec)?;
    repo::pipelines::insert_version(c, version)
}

impl Service {
    /// Creates a pipeline without versions.
    ///
    /// # Errors
    /// [`Error::Invalid`] for names and tags, [`Error::Exists`], or an error of the store.
    pub async fn create_pipeline(&self, new: NewPipeline) -> Result<Pipeline, Error> {
        let pipeline = pipeline(new)?;
        self.db.write(move |c| repo::pipelines::insert(c, &pipeline).map(|()| pipeline)).await
    }

    /// Creates a pipeline and its first version from a compiled pipeline.
    ///
    /// # Errors
    /// [`Error::Specification`], and the errors of [`Self::create_pipeline`].
    pub async fn create_pipeline_and_version(
        &self,
        new: NewPipeline,
        first: NewVersion,
        text: String,
    ) -> Result<Pipeline, Error> {
        let pipeline = pipeline(new)?;
        let (spec, _) = blocking(move || specification::from_text(&text)).await?;
        let version = version(&pipeline.pipeline_id, first, &spec)?;
        self.db
            .write(move |c| {
                repo::pipelines::insert(c, &pipeline)?;
                insert_version(c, &version, &spec)?;
                Ok(pipeline)
            })
            .await
    }

    /// Creates a version from a compiled pipeline.
    ///
    /// # Errors
    /// [`Error::Specification`], [`Error::Invalid`] for names and tags, [`Error::Exists`], [`Error::NotFound`] for the pipeline, or an
    /// error of the store.
    pub async fn create_version(&self, pipeline_id: String, new: NewVersion, text: String) -> Result<Version, Error> {
        let (spec, _) = blocking(move || specification::from_text(&text)).await?;
        let version = version(&pipeline_id, new, &spec)?;
        self.db
            .write(move |c| {
                repo::pipelines::find(c, &version.pipeline_id)?;
                insert_version(c, &version, &spec)?;
                Ok(version)
            })
            .await
    }

    /// Downloads a package and takes the compiled pipeline out of it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a URL that is not allowed, a response that is no package, or a package that is too large.
    pub async fn download_package(&self, url: &str) -> Result<String, Error> {
        let (name, content) = self.options.downloads.fetch(url).await?;
        blocking(move || package::read_package(&name, content).map_err(Error::from)).await
    }

    /// The pipeline with this id.
    ///
    /// # Errors
    /// [`Error::NotFound`], or an error of the store.
    pub fn pipeline(&self, id: &str) -> Result<Pipeline, Error> {
        self.db.read_now(|c| repo::pipelines::find(c, id))
    }

    /// The pipeline with this name.
    ///
    /// # Errors
    /// [`Error::NotFound`], or an error of the store.
    pub fn pipeline_by_name(&self, namespace: &str, name: &str) -> Result<Pipeline, Error> {
        self.db.read_now(|c| repo::pipelines::find_by_name(c, namespace, name))
    }

    /// A page of the pipelines of a namespace.
    ///
    /// # Errors
    /// [`Error::Invalid`] for the parameters of the list, or an error of the store.
    pub async fn pipelines(&self, namespace: String, request: &ListRequest) -> Result<Page<Pipeline>, Error> {
        let listing = Listing::new(&repo::pipelines::FIELDS, request)?;
        self.db.read(move |c| repo::pipelines::list(c, &namespace, &listing)).await
    }

    /// Changes the name that users see and the tags, where they are given.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`], or an error of the store.
    pub async fn update_pipeline(
        &self,
        id: String,
        display_name: String,
        tags: Option<Tags>,
    ) -> Result<Pipeline, Error> {
        check_length("Pipeline.DisplayName", &display_name, 1024)?;
        tags.as_ref().map_or(Ok(()), check_tags)?;
        self.db.write(move |c| repo::pipelines::update(c, &id, &display_name, tags.as_ref())).await
    }

    /// Deletes a pipeline; one with versions only if `cascade`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`] for a pipeline with versions, or an error of the store.
    pub async fn delete_pipeline(&self, id: String, cascade: bool) -> Result<(), Error> {
        self.db
            .write(move |c| {
                if !cascade && let Some(version) = repo::pipelines::newest_version(c, &id)? {
                    return Err(Error::Invalid(format!(
                        "Failed to delete pipeline with id {id} as it has existing pipeline versions (e.g. {}). Set cascade=true to \
                         delete all versions",
                        version.version_id
                    )));
                }
                repo::pipelines::delete(c, &id)
            })
            .await
    }

    /// A version of a pipeline with its specification.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`] if it belongs to another pipeline, or an error of the store.
    pub fn version(&self, pipeline_id: &str, id: &str) -> Result<(Version, StoredSpec), Error> {
        self.db.read_now(|c| {
            let version = repo::pipelines::find_version(c, id)?;
            belongs_visibly(c, &version, pipeline_id)?;
            let spec = repo::specs::find(c, &version.spec)?;
            Ok((version, spec))
        })
    }

    /// A page of the versions of a pipeline, with their specifications.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the pipeline, [`Error::Invalid`] for the parameters of the list, or an error of the store.
    pub async fn versions(
        &self,
        pipeline_id: String,
        request: &ListRequest,
    ) -> Result<Page<(Version, StoredSpec)>, Error> {
        let listing = Listing::new(&repo::pipelines::VERSION_FIELDS, request)?;
        self.db
            .read(move |c| {
                let page = repo::pipelines::list_versions(c, &pipeline_id, &listing)?;
                let items = page.items.into_iter().map(|version| {
                    let spec = repo::specs::find(c, &version.spec)?;
                    Ok((version, spec))
                });
                Ok(Page {
                    items: items.collect::<Result<_, Error>>()?,
                    total: page.total,
                    next_page_token: page.next_page_token,
                })
            })
            .await
    }

    /// Changes the name that users see and the tags of a version, where they are given.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`], or an error of the store.
    pub async fn update_version(
        &self,
        pipeline_id: String,
        id: String,
        display_name: String,
        tags: Option<Tags>,
    ) -> Result<(Version, StoredSpec), Error> {
        check_length("PipelineVersion.DisplayName", &display_name, 1024)?;
        tags.as_ref().map_or(Ok(()), check_tags)?;
        self.db
            .write(move |c| {
                belongs_visibly(c, &repo::pipelines::find_version(c, &id)?, &pipeline_id)?;
                let version = repo::pipelines::update_version(c, &id, &display_name, tags.as_ref())?;
                let spec = repo::specs::find(c, &version.spec)?;
                Ok((version, spec))
            })
            .await
    }

    /// Deletes a version.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`] if it belongs to another pipeline, or an error of the store.
    pub async fn delete_version(&self, pipeline_id: String, id: String) -> Result<(), Error> {
        self.db
            .write(move |c| {
                belongs_visibly(c, &repo::pipelines::find_version(c, &id)?, &pipeline_id)?;
                repo::pipelines::delete_version(c, &id)
            })
            .await
    }
}

/// [`belongs`], for a caller who may see this pipeline but perhaps not that of the version.
fn belongs_visibly(c: &Connection, version: &Version, pipeline_id: &str) -> Result<(), Error> {
    let namespace = |id: &str| repo::pipelines::find(c, id).map(|pipeline| pipeline.namespace);
    if version.pipeline_id != pipeline_id && namespace(&version.pipeline_id)? != namespace(pipeline_id)? {
        return Err(Error::NotFound(format!("PipelineVersion {} not found", version.version_id)));
    }
    belongs(version, pipeline_id)
}

/// Fails if the version is not one of this pipeline.
pub(super) fn belongs(version: &Version, pipeline_id: &str) -> Result<(), Error> {
    if version.pipeline_id == pipeline_id {
        return Ok(());
    }
    let (id, owner) = (&version.version_id, &version.pipeline_id);
    Err(Error::Invalid(format!("Pipeline version {id} belongs to pipeline {owner} (not {pipeline_id})")))
}
