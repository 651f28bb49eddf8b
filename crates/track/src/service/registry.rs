//! The rules of registered models and their versions.

use slipway_core::clock::now_ms;
use slipway_store::sql::Connection;

use super::Tracking;
use crate::artifact_path::percent_decoded;
use crate::filter::{entities, page_token};
use crate::location::{self, Kind};
use crate::model::{KeyValue, ModelVersion, Page, RegisteredModel};
use crate::repo::registry as repo;
use crate::{Error, ErrorCode, validate};

/// Tag of a registered model that is an MLflow prompt.
const IS_PROMPT: &str = "mlflow.prompt.is_prompt";
/// The stages of a model version.
const STAGES: [&str; 4] = ["None", "Staging", "Production", "Archived"];
/// Placeholders that MLflow uses as the source of prompt versions.
const PROMPT_SOURCES: [&str; 2] = ["prompt-template", "dummy-source"];

/// The fields of a new model version.
#[derive(Debug, Default)]
#[allow(missing_docs)] // the names are the protocol's own
pub struct NewModelVersion {
    pub name: String,
    pub source: String,
    pub run_id: Option<String>,
    pub run_link: String,
    pub description: String,
    pub model_id: Option<String>,
    pub tags: Vec<KeyValue>,
}

fn stage(name: &str) -> Result<&'static str, Error> {
    STAGES.into_iter().find(|s| s.eq_ignore_ascii_case(name)).ok_or_else(|| {
        Error::invalid(format!("Invalid Model Version stage: {name}. Value must be one of {}.", STAGES.join(", ")))
    })
}

fn is_prompt(tags: &[KeyValue]) -> bool {
    tags.iter().rev().find(|t| t.key == IS_PROMPT).is_some_and(|t| t.value.eq_ignore_ascii_case("true"))
}

impl Tracking {
    /// Runs a change in a transaction, then notifies the receivers of [`Tracking::registry_changes`].
    async fn change_registry<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let result = self.db.write(change).await?;
        self.registry_changed();
        Ok(result)
    }

    /// Creates a registered model.
    ///
    /// # Errors
    /// An invalid or taken name, or an invalid tag.
    pub async fn create_model(
        &self,
        name: String,
        tags: Vec<KeyValue>,
        description: String,
    ) -> Result<RegisteredModel, Error> {
        let tags = self.with_owner(tags)?;
        validate::model_name(&name)?;
        for tag in &tags {
            validate::registry_tag(&tag.key, &tag.value)?;
        }
        self.change_registry(move |c| {
            if !repo::insert_model(c, &name, &description, now_ms())? {
                let kind = |prompt| if prompt { "Prompt" } else { "Registered Model" };
                let old = kind(repo::model_tag(c, &name, IS_PROMPT)?.is_some_and(|v| v.eq_ignore_ascii_case("true")));
                let new = kind(is_prompt(&tags));
                let message = if old == new {
                    format!("{new} (name={name}) already exists.")
                } else {
                    format!(
                        "Tried to create a {} with name '{name}', but the name is already taken by a {}. MLflow does \
                         not allow creating a model and a prompt with the same name.",
                        new.to_lowercase(),
                        old.to_lowercase()
                    )
                };
                return Err(Error::new(ErrorCode::ResourceAlreadyExists, message));
            }
            for tag in &tags {
                repo::set_model_tag(c, &name, tag)?;
            }
            repo::find_model(c, &name)
        })
        .await
    }

    /// The registered model with this name.
    ///
    /// # Errors
    /// No such model.
    pub fn model(&self, name: &str) -> Result<RegisteredModel, Error> {
        validate::model_name(name)?;
        self.db.read_now(|c| repo::find_model(c, name))
    }

    /// Sets a model's description.
    ///
    /// # Errors
    /// No such model.
    pub async fn describe_model(&self, name: String, description: String) -> Result<RegisteredModel, Error> {
        self.may_change_model(&name)?;
        validate::model_name(&name)?;
        self.change_registry(move |c| {
            repo::require_model(c, &name)?;
            repo::describe_model(c, &name, &description, now_ms())?;
            repo::find_model(c, &name)
        })
        .await
    }

    /// Renames a model.
    ///
    /// # Errors
    /// An invalid or taken name, or no such model.
    pub async fn rename_model(&self, name: String, new_name: String) -> Result<RegisteredModel, Error> {
        if new_name.trim().is_empty() {
            return Err(Error::invalid("Missing value for required parameter 'new_name'."));
        }
        validate::model_name(&new_name)?;
        validate::model_name(&name)?;
        self.change_registry(move |c| {
            repo::require_model(c, &name)?;
            repo::rename_model(c, &name, &new_name, now_ms())?;
            repo::find_model(c, &new_name)
        })
        .await
    }

    /// Deletes a model and its versions.
    ///
    /// # Errors
    /// No such model.
    pub async fn delete_model(&self, name: String) -> Result<(), Error> {
        validate::model_name(&name)?;
        self.change_registry(move |c| {
            repo::require_model(c, &name)?;
            repo::delete_model(c, &name)
        })
        .await
    }

    /// Searches registered models.
    ///
    /// # Errors
    /// An invalid filter, order, page size or page token.
    pub async fn search_models(
        &self,
        filter: &str,
        max_results: i64,
        order_by: &[String],
        token: Option<&str>,
    ) -> Result<Page<RegisteredModel>, Error> {
        let limit = registry_page_size(max_results, 1000)?;
        let conditions = entities::compile(&entities::MODELS, filter)?;
        let order = entities::compile_order(&entities::MODELS, order_by, &[], &[("m.name", "")])?;
        let offset = page_token::decode(token)?;
        let found = self.db.read(move |c| repo::search_models(c, &conditions, &order, limit + 1, offset)).await?;
        Ok(page_token::page(found, offset, limit))
    }

    /// The newest version of each stage, or of each of `stages` if not empty.
    ///
    /// # Errors
    /// An unknown stage, or no such model.
    pub fn latest_versions(&self, name: &str, stages: &[String]) -> Result<Vec<ModelVersion>, Error> {
        validate::model_name(name)?;
        let model = self.db.read_now(|c| repo::find_model(c, name))?;
        let selected = if stages.is_empty() {
            STAGES.to_vec()
        } else {
            stages.iter().map(|s| stage(s)).collect::<Result<Vec<_>, _>>()?
        };
        let aliases = model.aliases;
        let mut versions = model.latest_versions;
        versions.retain(|v| selected.contains(&v.current_stage.as_str()));
        for version in &mut versions {
            let own = aliases.iter().filter(|a| a.version == version.version);
            version.aliases = own.map(|a| a.alias.clone()).collect();
        }
        Ok(versions)
    }

    /// Sets a model's tag.
    ///
    /// # Errors
    /// An invalid tag, or no such model.
    pub async fn set_model_tag(&self, name: String, tag: KeyValue) -> Result<(), Error> {
        self.may_change_model(&name)?;
        self.may_change_tag(&tag.key)?;
        validate::model_name(&name)?;
        validate::registry_tag(&tag.key, &tag.value)?;
        self.change_registry(move |c| {
            repo::require_model(c, &name)?;
            repo::set_model_tag(c, &name, &tag)
        })
        .await
    }

    /// Removes a model's tag. It is not an error if there is no such tag.
    ///
    /// # Errors
    /// An invalid key, or no such model.
    pub async fn delete_model_tag(&self, name: String, key: String) -> Result<(), Error> {
        self.may_change_model(&name)?;
        self.may_change_tag(&key)?;
        validate::model_name(&name)?;
        validate::name(&key, "key")?;
        self.change_registry(move |c| {
            repo::require_model(c, &name)?;
            repo::delete_model_tag(c, &name, &key)
        })
        .await
    }

    /// Creates a version.
    ///
    /// # Errors
    /// A source outside of the run or logged model that the request names, or no such model.
    pub async fn create_version(&self, mut new: NewModelVersion) -> Result<ModelVersion, Error> {
        self.may_change_model(&new.name)?;
        let prompt = is_prompt(&new.tags);
        if prompt && !PROMPT_SOURCES.contains(&new.source.as_str()) {
            return Err(Error::invalid(format!(
                "Invalid prompt source: '{}'. Prompt sources must use an MLflow placeholder.",
                new.source
            )));
        }
        let mut storage_location = new.source.clone();
        if !prompt {
            if let Some((name, version)) = self.registered_source(&new.source)? {
                let source = self.version(&name, &version)?;
                let model_id = self.db.read_now(|c| repo::version_model_id(c, &name, version.parse().unwrap_or(0)))?;
                let differs = |given: &Option<String>, stored: &str| given.as_deref().is_some_and(|g| g != stored);
                if differs(&new.run_id, source.run_id.as_deref().unwrap_or_default())
                    || differs(&new.model_id, &model_id)
                {
                    return Err(Error::invalid(format!(
                        "Invalid model version source: '{}'. The run_id and model_id request parameters must match \
                         the referenced model version.",
                        new.source
                    )));
                }
                new.source = format!("models:/{name}/{}", source.version);
                new.run_id = new.run_id.or(source.run_id);
                new.model_id = new.model_id.or(Some(model_id).filter(|m| !m.is_empty()));
                storage_location = source.storage_location;
            } else {
                self.check_source(&new)?;
            }
        }
        if let Some(model_id) = new.model_id.as_deref().filter(|m| !m.is_empty()) {
            let model = self.logged_model(model_id, false)?;
            if new.source.starts_with("models:/m-") {
                storage_location = model.info.artifact_uri;
            }
            if new.run_id.as_deref().unwrap_or_default().is_empty() {
                new.run_id = Some(model.info.source_run_id);
            }
        }
        validate::model_name(&new.name)?;
        for tag in &new.tags {
            validate::registry_tag(&tag.key, &tag.value)?;
        }
        // A run may register another tenant's logged model, because that only reads it. The version is then not recorded in its tags.
        let logged_model = new.model_id.clone().filter(|id| !id.is_empty() && !prompt);
        let logged_model = logged_model.filter(|id| self.may_change_logged_model(id).is_ok());
        self.change_registry(move |c| {
            let now = now_ms();
            repo::require_model(c, &new.name)?;
            repo::touch_model(c, &new.name, now)?;
            let row = repo::NewVersion {
                name: &new.name,
                source: &new.source,
                storage_location: &storage_location,
                run_id: new.run_id.as_deref().unwrap_or_default(),
                run_link: &new.run_link,
                description: &new.description,
                model_id: new.model_id.as_deref().unwrap_or_default(),
            };
            let number = repo::insert_version(c, &row, now)?;
            for tag in &new.tags {
                repo::set_version_tag(c, &new.name, number, tag)?;
            }
            if let Some(model_id) = &logged_model {
                record_version(c, model_id, &new.name, number)?;
            }
            repo::find_version(c, &new.name, number)
        })
        .await
    }

    /// Resolves `models:/NAME/VERSION` or `models:/NAME@ALIAS` to name and version; `None` for any other source.
    fn registered_source(&self, source: &str) -> Result<Option<(String, String)>, Error> {
        let Some(rest) = source.strip_prefix("models:/").filter(|r| !r.starts_with("m-") || r.contains(['/', '@']))
        else {
            return Ok(None);
        };
        let version = self.resolve_model_uri(&format!("models:/{rest}"))?;
        Ok(Some((version.name, version.version)))
    }

    /// Rejects a source outside of the run or logged model that the request names.
    fn check_source(&self, new: &NewModelVersion) -> Result<(), Error> {
        let source = new.source.as_str();
        let run_id = new.run_id.as_deref().filter(|r| !r.is_empty());
        let model_id = new.model_id.as_deref().filter(|m| !m.is_empty());
        let field = if model_id.is_some() { "model_id" } else { "run_id" };
        let refuse = |field: &str| {
            Err(Error::invalid(format!(
                "Invalid model version source: '{source}'. The {field} request parameter must identify the resource \
                 that contains the source."
            )))
        };
        let kind = location::kind(source).ok_or_else(|| {
            Error::invalid(format!(
                "Invalid model version source: '{}'. It is not the URI of a location for artifacts.",
                source.escape_debug()
            ))
        })?;
        if kind == Kind::Local {
            return Err(Error::invalid(format!(
                "Invalid model version source: '{source}'. To use a local path as a model version source, the {field} \
                 request parameter has to be specified and the local path has to be contained within the artifact \
                 directory of the run specified by the {field}."
            )));
        }
        let decoded = percent_decoded(source);
        if decoded.is_none_or(|decoded| decoded.contains('\0') || decoded.split('/').any(|p| p == "..")) {
            return Err(Error::invalid(format!(
                "Invalid model version source: '{source}'. If supplying a source as an http, https, local file path, \
                 ftp, objectstore, or mlflow-artifacts uri, an absolute path must be provided without relative path \
                 references present. Please provide an absolute path."
            )));
        }
        match kind {
            Kind::Run => {
                let named = source.strip_prefix("runs:/").and_then(|rest| rest.split('/').next());
                if model_id.is_none() && run_id.is_some() && named == run_id { Ok(()) } else { refuse(field) }
            }
            Kind::Model => {
                let named = source.strip_prefix("models:/");
                if model_id.is_some() && named == model_id { Ok(()) } else { refuse("model_id") }
            }
            Kind::Http if !source.contains("/mlflow-artifacts/artifacts") => Ok(()),
            Kind::Stored | Kind::Http => {
                let root = match (model_id, run_id) {
                    (Some(id), _) => self.logged_model(id, false).map(|m| m.info.artifact_uri),
                    (None, Some(id)) => self.run_info(id).map(|r| r.artifact_uri),
                    (None, None) => return refuse(field),
                };
                match root {
                    Ok(root) if is_within(source, &root) => Ok(()),
                    Ok(_) => refuse(field),
                    Err(e) if e.code == ErrorCode::ResourceDoesNotExist => refuse(field),
                    Err(e) => Err(e),
                }
            }
            // Only clients access these locations; this server never does.
            Kind::External | Kind::Local => Ok(()),
        }
    }

    /// The version with this number.
    ///
    /// # Errors
    /// No such version.
    pub fn version(&self, name: &str, version: &str) -> Result<ModelVersion, Error> {
        validate::model_name(name)?;
        let number = validate::model_version(version)?;
        self.db.read_now(|c| repo::find_version(c, name, number))
    }

    /// Runs a change of an existing version in a transaction.
    async fn change_version<T: Send + 'static>(
        &self,
        name: String,
        version: &str,
        change: impl FnOnce(&Connection, &str, i64) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        validate::model_name(&name)?;
        let number = validate::model_version(version)?;
        self.change_registry(move |c| {
            repo::find_version(c, &name, number)?;
            change(c, &name, number)
        })
        .await
    }

    /// Sets a version's description.
    ///
    /// # Errors
    /// No such version.
    pub async fn describe_version(
        &self,
        name: String,
        version: &str,
        description: Option<String>,
    ) -> Result<ModelVersion, Error> {
        self.may_change_model(&name)?;
        self.change_version(name, version, move |c, name, number| {
            repo::describe_version(c, name, number, description.as_deref(), now_ms())?;
            repo::find_version(c, name, number)
        })
        .await
    }

    /// Moves a version to a stage. With `archive`, the other versions in this stage move to `Archived`.
    ///
    /// # Errors
    /// An unknown stage, `archive` with a stage other than `Staging` and `Production`, or no such version.
    pub async fn transition(
        &self,
        name: String,
        version: &str,
        to: &str,
        archive: bool,
    ) -> Result<ModelVersion, Error> {
        self.may_change_model(&name)?;
        let canonical = stage(to)?;
        if archive && !matches!(canonical, "Staging" | "Production") {
            return Err(Error::new(
                ErrorCode::InternalError,
                format!(
                    "Model version transition cannot archive existing model versions because '{to}' is not an Active \
                     stage. Valid stages are ['Staging', 'Production']"
                ),
            ));
        }
        self.change_version(name, version, move |c, name, number| {
            repo::set_version_stage(c, name, number, canonical, archive, now_ms())?;
            repo::find_version(c, name, number)
        })
        .await
    }

    /// Deletes a version. Its number is never reused.
    ///
    /// # Errors
    /// No such version.
    pub async fn delete_version(&self, name: String, version: &str) -> Result<(), Error> {
        self.change_version(name, version, |c, name, number| repo::delete_version(c, name, number, now_ms())).await
    }

    /// Searches model versions.
    ///
    /// # Errors
    /// An invalid filter, order, page size or page token.
    pub async fn search_versions(
        &self,
        filter: &str,
        max_results: i64,
        order_by: &[String],
        token: Option<&str>,
    ) -> Result<Page<ModelVersion>, Error> {
        let limit = registry_page_size(max_results, 200_000)?;
        let conditions = entities::compile(&entities::VERSIONS, filter)?;
        let order = entities::compile_order(
            &entities::VERSIONS,
            order_by,
            &["last_updated_timestamp DESC", "name ASC", "version_number DESC"],
            &[("v.name", ""), ("v.version", " DESC")],
        )?;
        let offset = page_token::decode(token)?;
        let found = self.db.read(move |c| repo::search_versions(c, &conditions, &order, limit + 1, offset)).await?;
        Ok(page_token::page(found, offset, limit))
    }

    /// Sets a version's tag.
    ///
    /// # Errors
    /// An invalid tag, or no such version.
    pub async fn set_version_tag(&self, name: String, version: &str, tag: KeyValue) -> Result<(), Error> {
        self.may_change_model(&name)?;
        validate::model_name(&name)?;
        validate::model_version(version)?;
        validate::registry_tag(&tag.key, &tag.value)?;
        self.change_version(name, version, move |c, name, number| repo::set_version_tag(c, name, number, &tag)).await
    }

    /// Removes a version's tag. It is not an error if there is no such tag.
    ///
    /// # Errors
    /// An invalid key, or no such version.
    pub async fn delete_version_tag(&self, name: String, version: &str, key: String) -> Result<(), Error> {
        self.may_change_model(&name)?;
        validate::name(&key, "key")?;
        self.change_version(name, version, move |c, name, number| repo::delete_version_tag(c, name, number, &key)).await
    }

    /// Sets an alias to a version.
    ///
    /// # Errors
    /// An invalid or reserved alias, or no such version.
    pub async fn set_alias(&self, name: String, alias: String, version: &str) -> Result<(), Error> {
        self.may_change_model(&name)?;
        validate::model_name(&name)?;
        validate::alias(&alias)?;
        validate::alias_not_reserved(&alias)?;
        self.change_version(name, version, move |c, name, number| repo::set_alias(c, name, &alias, number)).await
    }

    /// Removes an alias. It is not an error if there is no such alias.
    ///
    /// # Errors
    /// An invalid alias, or no such model.
    pub async fn delete_alias(&self, name: String, alias: String) -> Result<(), Error> {
        self.may_change_model(&name)?;
        validate::model_name(&name)?;
        validate::alias(&alias)?;
        self.change_registry(move |c| {
            repo::require_model(c, &name)?;
            repo::delete_alias(c, &name, &alias)
        })
        .await
    }

    /// The version to which an alias points; `latest` is the highest version.
    ///
    /// # Errors
    /// An invalid or unknown alias, or no such model.
    pub fn version_by_alias(&self, name: &str, alias: &str) -> Result<ModelVersion, Error> {
        // MLflow responds with INVALID_PARAMETER_VALUE to an unknown alias.
        self.find_alias(name, alias)?
            .ok_or_else(|| Error::invalid(format!("Registered model alias {alias} not found.")))
    }

    /// The version to which an alias points, if the model has that alias.
    pub(super) fn find_alias(&self, name: &str, alias: &str) -> Result<Option<ModelVersion>, Error> {
        validate::model_name(name)?;
        validate::alias(alias)?;
        if alias.eq_ignore_ascii_case("latest") {
            let newest = self.latest_versions(name, &[])?.into_iter();
            return newest
                .max_by_key(|v| v.version.parse::<i64>().unwrap_or(0))
                .map(Some)
                .ok_or_else(|| Error::missing(format!("Latest version not found for model {name}.")));
        }
        self.db.read_now(|c| {
            repo::require_model(c, name)?;
            repo::alias(c, name, alias)?.map(|number| repo::find_version(c, name, number)).transpose()
        })
    }

    /// Resolves `models:/NAME/VERSION`, `models:/NAME/STAGE`, `models:/NAME/latest` or `models:/NAME@ALIAS` to a version.
    ///
    /// # Errors
    /// A URI of another form, or no such version.
    pub fn resolve_model_uri(&self, uri: &str) -> Result<ModelVersion, Error> {
        let invalid = || {
            Error::invalid(format!(
                "Not a proper models:/ URI: {uri}. Models URIs must be of the form 'models:/model_name/suffix' or \
                 'models:/model_name@alias' where suffix is a model version, stage, or the string 'latest' and where \
                 alias is a registered model alias. Only one of suffix or alias can be defined at a time."
            ))
        };
        if let Some((name, alias)) = alias_of_uri(uri) {
            return self.version_by_alias(name, alias);
        }
        let rest = path_of_uri(uri).ok_or_else(invalid)?;
        let (name, suffix) =
            rest.split_once('/').filter(|(n, s)| !n.is_empty() && !s.is_empty()).ok_or_else(invalid)?;
        if suffix.bytes().all(|b| b.is_ascii_digit()) {
            return self.version(name, suffix);
        }
        if suffix.eq_ignore_ascii_case("latest") {
            return self.version_by_alias(name, "latest");
        }
        let found = self.latest_versions(name, &[suffix.to_owned()])?.into_iter().next();
        found.ok_or_else(|| {
            Error::missing(format!("No versions of model with name '{name}' and stage '{suffix}' found"))
        })
    }
}

/// The part of a `models:/` URI after the scheme.
fn path_of_uri(uri: &str) -> Option<&str> {
    uri.strip_prefix("models:/").map(|path| path.trim_start_matches('/'))
}

/// The name and the alias of `models:/NAME@ALIAS`; `None` for other URIs.
pub(super) fn alias_of_uri(uri: &str) -> Option<(&str, &str)> {
    path_of_uri(uri)?.split_once('@')
}

fn registry_page_size(max_results: i64, limit: i64) -> Result<i64, Error> {
    if max_results < 1 {
        return Err(Error::invalid(format!(
            "Invalid value for max_results. It must be a positive integer, but got {max_results}"
        )));
    }
    Ok(max_results.min(limit))
}

/// Adds a model version to the list in the logged model's tag `mlflow.modelVersions`.
fn record_version(c: &Connection, model_id: &str, name: &str, number: i64) -> Result<(), Error> {
    const TAG: &str = "mlflow.modelVersions";
    let model = crate::repo::logged_models::find(c, model_id, false)?;
    let recorded = model.info.tags.iter().find(|t| t.key == TAG).and_then(|t| serde_json::from_str(&t.value).ok());
    let mut versions: Vec<serde_json::Value> = recorded.unwrap_or_default();
    versions.push(serde_json::json!({ "name": name, "version": number }));
    let value = validate::python_json(&serde_json::Value::Array(versions));
    crate::repo::logged_models::set_tag(c, model_id, &KeyValue { key: TAG.into(), value })
}

/// Whether `source` is `root` or below it, compared by whole path segments.
fn is_within(source: &str, root: &str) -> bool {
    let parts = |uri: &str| -> Option<Vec<String>> {
        Some(percent_decoded(uri)?.split('/').filter(|p| !p.is_empty()).map(str::to_owned).collect())
    };
    match (parts(source), parts(root)) {
        (Some(source), Some(root)) => root.len() > 1 && source.starts_with(&root),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_compared_by_path_segments() {
        assert!(is_within("mlflow-artifacts:/1/abc/artifacts/model", "mlflow-artifacts:/1/abc/artifacts"));
        assert!(!is_within("mlflow-artifacts:/1/abcd/artifacts", "mlflow-artifacts:/1/abc"));
        assert!(!is_within("mlflow-artifacts:/1/abc%252f..%252fx", "mlflow-artifacts:/1/abc/artifacts"));
    }
}
