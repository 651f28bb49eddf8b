//! `update`: brings imports to the newest version of their source, and other data to the last versions in a bucket.

use super::Talk;
use super::checkout::{discard, restore};
use super::import::{
    announce, existing_item, finish, lock_commit, open_location, open_source, set_output, take_files, take_item,
    take_location, version_of_content, version_of_tags,
};
use super::status::output_change;
use super::{partial, source_versions, update_versioned};
use crate::error::DataError;
use crate::external::Location;
use crate::model::Meta;
use crate::project::Project;
use crate::stage::{Import, Stage};
use crate::yaml::Value;

/// How to update.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The branch, tag or commit of the source to follow from now on; of an import from a bucket, the version of the file.
    pub revision: Option<String>,
    /// The targets are folders with stages.
    pub recursive: bool,
    /// Record the new version without copying it.
    pub no_download: bool,
    /// Send the data to this remote, or the default one (`Some(None)`), instead of the workspace.
    pub to_remote: Option<Option<String>>,
    /// Number of concurrent transfers.
    pub jobs: Option<usize>,
}

/// Updates the targets: imports to their source, other data to the last versions in a bucket.
///
/// # Errors
/// [`DataError::Target`] for an unknown target, or the errors of an import.
pub async fn update(
    project: &mut Project,
    targets: &[String],
    options: &Options,
    talk: &dyn Talk,
) -> Result<(), DataError> {
    let stages = project.stages()?;
    let selected: Vec<Stage> = project
        .select(&stages, targets, options.recursive)?
        .into_iter()
        .map(|selected| selected.stage.clone())
        .collect();
    for mut stage in selected {
        if options.no_download {
            partial::save_recorded(project, &stage, options.jobs, talk).await;
        }
        match stage.import() {
            Some(Import::Repository { revision, .. }) => {
                if options.to_remote.is_some() {
                    let reason = "data imported from other repositories cannot be updated with --to-remote";
                    return Err(DataError::Invalid(reason.into()));
                }
                update_repository(project, &mut stage, revision, options, talk).await?;
            }
            Some(Import::Url(_)) => update_location(project, &mut stage, options, talk).await?,
            None => update_versioned::update(project, &mut stage, options, talk).await?,
        }
    }
    project.state.save()
}

async fn update_repository(
    project: &Project,
    stage: &mut Stage,
    revision: Option<String>,
    options: &Options,
    talk: &dyn Talk,
) -> Result<(), DataError> {
    if let Some(revision) = &options.revision {
        stage.set_dependency(true, vec![("rev", Some(Value::string(revision)))]);
    }
    let revision = options.revision.clone().or(revision);
    let repository = open_source(project, stage, revision.as_deref()).await?;
    lock_commit(stage, &repository)?;
    if !stage.is_unsealed() && output_change(project, &stage.outs[0])?.is_none() {
        return unchanged(project, stage, talk);
    }
    announce(project, stage, talk);
    if options.no_download {
        discard(project, &stage.outs[0], talk)?;
    } else {
        take_files(project, stage, &repository, options.jobs).await?;
        restore(project, &stage.outs[0], false, talk)?;
    }
    seal(stage, options);
    finish(project, stage).map(drop)
}

async fn update_location(
    project: &mut Project,
    stage: &mut Stage,
    options: &Options,
    talk: &dyn Talk,
) -> Result<(), DataError> {
    if let Some(remote) = &options.to_remote {
        let location = open_location(project, stage)?;
        let item = existing_item(&location).await?;
        let tags = version_of_tags(&location, &item, options.jobs).await?;
        let sent =
            super::add_external::transfer(project, &location, &item, remote.as_deref(), options.jobs, "update").await?;
        stage.identify_dependency(tags.unwrap_or_else(|| version_of_content(&sent)));
        set_output(&mut stage.outs[0], &sent);
        stage.seal();
        return finish(project, stage).map(drop);
    }
    let location = open_location(project, stage)?;
    let revision = options.revision.as_deref();
    let is_current = is_current(project, stage, &location, revision).await?;
    if is_current && !stage.is_unsealed() && output_change(project, &stage.outs[0])?.is_none() {
        return unchanged(project, stage, talk);
    }
    announce(project, stage, talk);
    if options.no_download {
        discard(project, &stage.outs[0], talk)?;
    }
    take_location(project, stage, &location, revision, options.no_download, options.jobs).await?;
    if !options.no_download {
        restore(project, &stage.outs[0], false, talk)?;
    }
    seal(stage, options);
    finish(project, stage).map(drop)
}

/// Whether the data at the URL has the recorded version, or `revision` is the recorded one.
pub(super) async fn is_current(
    project: &Project,
    stage: &Stage,
    location: &Location,
    revision: Option<&str>,
) -> Result<bool, DataError> {
    if location.keeps_versions() {
        return Ok(stage.source_files() == Some(source_versions::find(location, revision, None).await?));
    }
    let item = existing_item(location).await?;
    let version = match version_of_tags(location, &item, None).await? {
        Some(version) => version,
        None => version_of_content(&take_item(project, location, &item, None, None).await?),
    };
    // The first key identifies the content; the others describe it.
    Ok(version.first().is_some_and(|(key, value)| value.is_some() && stage.dependency(key) == value.as_ref()))
}

fn unchanged(project: &Project, stage: &Stage, talk: &dyn Talk) -> Result<(), DataError> {
    talk.tell(&format!("'{}' didn't change, skipping", stage.address(&project.current)));
    finish(project, stage).map(drop)
}

/// Seals an updated import. Without the new data, the digest of the old data no longer fits the recorded version, so it is removed; as in DVC, the
/// digest of the stage still includes it.
fn seal(stage: &mut Stage, options: &Options) {
    stage.seal();
    if options.no_download {
        (stage.outs[0].digest, stage.outs[0].meta) = (None, Meta::default());
    }
}
