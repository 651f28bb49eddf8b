//! The data sets of a revision, and the versions of one along the history.

use std::collections::HashMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;

use super::opened::Opened;
use crate::error::DataError;
use crate::external::redact;
use crate::pipeline::{self, Files};
use crate::project::find_output;
use crate::scm::{Blobs, Object};
use crate::stage::{LOCK_FILE, Output, OutputKind, PIPELINE_FILE, Stage};

/// Maximum number of data sets in a list.
const MAX_DATA_SETS: usize = 2000;
/// Maximum number of commits that are searched for versions.
const MAX_COMMITS: usize = 300;
/// Maximum number of branches and of tags in a list.
const MAX_REFERENCES: usize = 200;

/// A branch or tag.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataReference")]
pub struct Reference {
    /// The name.
    pub name: String,
    /// The commit.
    pub commit: String,
    /// Whether it is a tag.
    pub is_tag: bool,
}

/// A repository at a revision.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataRepositorySummary")]
pub struct Summary {
    /// The commit.
    pub commit: String,
    /// Its time in seconds since the Unix epoch.
    pub time: i64,
    /// The name of its author.
    pub author: String,
    /// The first line of its message.
    pub subject: String,
    /// The branch that is checked out, or the default branch.
    pub branch: Option<String>,
    /// At most 200 branches and 200 tags.
    pub references: Vec<Reference>,
    /// The names of its remotes with their URLs, without credentials.
    pub remotes: Vec<(String, String)>,
}

/// A file or folder that the project tracks.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DataSet {
    /// The path from the root of the project.
    pub path: String,
    /// The `.dvc` file or `dvc.yaml` that tracks it.
    pub file: String,
    /// The stage that writes it.
    pub stage: Option<String>,
    /// `data`, `metric` or `plot`.
    pub kind: String,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// The digest; `null` if none is recorded yet.
    pub digest: Option<String>,
    /// Bytes, if they are recorded.
    pub size: Option<u64>,
    /// Number of files, if it is recorded.
    pub files: Option<u64>,
    /// Whether the cache has the file, or the list of the folder's files; `null` if the server reads no cache of the repository.
    pub in_cache: Option<bool>,
    /// The only remote that has it.
    pub remote: Option<String>,
}

/// The data sets of a revision.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DataSets {
    /// The commit.
    pub commit: String,
    /// By path.
    pub data_sets: Vec<DataSet>,
    /// Whether there are more.
    pub truncated: bool,
}

/// A version of a data set: a commit that changed its digest.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DataVersion {
    /// The commit.
    pub commit: String,
    /// Its time in seconds since the Unix epoch.
    pub time: i64,
    /// The name of its author.
    pub author: String,
    /// The first line of its message.
    pub subject: String,
    /// The tags and branches that point to the commit.
    pub names: Vec<String>,
    /// The digest; `null` if the commit removed the data set.
    pub digest: Option<String>,
    /// Bytes, if they are recorded.
    pub size: Option<u64>,
    /// Number of files, if it is recorded.
    pub files: Option<u64>,
}

/// The versions of a data set.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DataVersions {
    /// The newest first.
    pub versions: Vec<DataVersion>,
    /// Whether older commits were not searched.
    pub truncated: bool,
}

fn kind(output: &Output) -> String {
    let kind = match output.kind {
        OutputKind::Data => "data",
        OutputKind::Metric => "metric",
        OutputKind::Plot(_) => "plot",
    };
    kind.to_owned()
}

impl Opened {
    fn references(&self) -> Result<Vec<Reference>, DataError> {
        let mut all = Vec::new();
        for (namespace, is_tag) in [("refs/heads/", false), ("refs/tags/", true)] {
            let found = self.git.references(namespace)?;
            let reference = |(name, commit): (String, String)| Reference {
                name: name[namespace.len()..].to_owned(),
                commit,
                is_tag,
            };
            all.extend(found.into_iter().take(MAX_REFERENCES).map(reference));
        }
        Ok(all)
    }

    /// The repository at this revision.
    ///
    /// # Errors
    /// If the commit cannot be read.
    pub fn summary(&self) -> Result<Summary, DataError> {
        let described = self.git.changes_of(&self.commit, &[], 1)?.pop();
        let described = described.ok_or_else(|| DataError::Git(format!("{} cannot be read", self.commit)))?;
        let config = &self.project.config;
        let url = |name: &String| config.remote(name).and_then(|options| options.get("url")).map_or("", String::as_str);
        Ok(Summary {
            commit: described.id,
            time: described.time,
            author: described.author,
            subject: described.subject,
            branch: self.git.branch(),
            references: self.references()?,
            remotes: config.remotes().iter().map(|name| (name.clone(), redact(url(name)))).collect(),
        })
    }

    /// The data sets.
    ///
    /// # Errors
    /// If a file of the commit cannot be read or understood.
    pub fn data_sets(&self) -> Result<DataSets, DataError> {
        let stages = self.stages()?;
        let mut data_sets: Vec<DataSet> = stages
            .iter()
            .flat_map(|stage| stage.outs.iter().filter_map(|output| self.data_set(stage, output)))
            .collect();
        data_sets.sort_by(|a, b| a.path.cmp(&b.path));
        let truncated = data_sets.len() > MAX_DATA_SETS;
        data_sets.truncate(MAX_DATA_SETS);
        Ok(DataSets { commit: self.commit.clone(), data_sets, truncated })
    }

    fn data_set(&self, stage: &Stage, output: &Output) -> Option<DataSet> {
        let cache = self.project.cache_of(output.hash);
        let has_cache = cache.root().is_dir();
        let in_cache = output.digest.filter(|_| has_cache && output.cached);
        Some(DataSet {
            path: self.shown(output.path.as_deref()?),
            file: self.shown(&stage.file),
            stage: stage.name.clone(),
            kind: kind(output),
            is_folder: output.digest.is_some_and(|digest| digest.is_dir),
            digest: output.digest.map(|digest| digest.to_string()),
            size: output.meta.size,
            files: output.meta.nfiles.or_else(|| output.digest.filter(|digest| !digest.is_dir).map(|_| 1)),
            in_cache: in_cache.map(|digest| cache.path(&digest).is_file()),
            remote: output.remote.clone(),
        })
    }

    /// The versions of the data set at a path: the commits that changed its digest.
    ///
    /// # Errors
    /// [`DataError::Target`] if nothing is tracked there at this revision.
    pub fn versions(&self, path: &str) -> Result<DataVersions, DataError> {
        let path = self.absolute(path)?;
        let stages = self.stages()?;
        let (stage, output, _) = self.output(&stages, &path)?;
        let root = output.path.clone().unwrap_or(path);
        let is_pipeline = stage.file.file_name().is_some_and(|name| name == PIPELINE_FILE);
        let lock = stage.file.with_file_name(LOCK_FILE);
        let tracking = if is_pipeline { &lock } else { &stage.file };
        let relative = tracking.strip_prefix(self.git.root()).unwrap_or(tracking);
        let commits = self.git.changes_of(&self.commit, &[relative], MAX_COMMITS)?;
        let truncated = commits.len() == MAX_COMMITS;
        let mut names: HashMap<String, Vec<String>> = HashMap::new();
        for reference in self.references()? {
            names.entry(reference.commit).or_default().push(reference.name);
        }
        let blobs = Blobs::open(&self.git)?;
        let mut versions: Vec<DataVersion> = Vec::new();
        // From the oldest on, so that a commit which does not change the digest is left out.
        for commit in commits.into_iter().rev() {
            self.project.allowance.check()?;
            // A commit whose file cannot be read has no version; the others are shown.
            let found = self.output_in(&blobs, &commit.id, &stage.file, &root).unwrap_or_default();
            let digest = found.as_ref().and_then(|output| output.digest).map(|digest| digest.to_string());
            if versions.last().map(|last| &last.digest) == Some(&digest) || (versions.is_empty() && digest.is_none()) {
                continue;
            }
            let meta = found.map(|output| output.meta).unwrap_or_default();
            versions.push(DataVersion {
                names: names.remove(&commit.id).unwrap_or_default(),
                commit: commit.id,
                time: commit.time,
                author: commit.author,
                subject: commit.subject,
                digest,
                size: meta.size,
                files: meta.nfiles,
            });
        }
        versions.reverse();
        Ok(DataVersions { versions, truncated })
    }

    /// The output at a path (absolute) that a `.dvc` file or pipeline of a commit has.
    fn output_in(&self, blobs: &Blobs, commit: &str, file: &Path, path: &Path) -> Result<Option<Output>, DataError> {
        let read = |file: &Path| match blobs.get(commit, file)? {
            Some(Object::Blob(bytes)) => {
                self.project.allowance.stage_files(std::iter::once((file, bytes.len())))?;
                Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
            }
            _ => Ok::<_, DataError>(None),
        };
        let Some(text) = read(file)? else { return Ok(None) };
        let root = &self.project.root;
        let stages = if file.file_name().is_some_and(|name| name == PIPELINE_FILE) {
            let unpacking = pipeline::unpacking(&self.project.config);
            pipeline::load(file, &text, &mut Files::new(root, &read).within(&self.project.allowance), unpacking)?
        } else {
            vec![Stage::parse(file, root, text)?]
        };
        Ok(find_output(&stages, path).map(|(_, output)| output.clone()))
    }
}
