//! `import` and `import-url`: tracks a copy of data in another repository, or at a URL, and records where it comes from.

use std::path::{Path, PathBuf};

use super::add::{check_links, check_overlaps};
use super::checkout::restore;
use super::exchange::Outcomes;
use super::status::in_cache;
use super::{GitFiles, Talk, source_versions};
use crate::cache::Cache;
use crate::config::{is_url, relative_path};
use crate::error::DataError;
use crate::external::location::Item;
use crate::external::{self, Location, Repository, Tracked};
use crate::gitignore;
use crate::ignore::is_reserved;
use crate::manifest::{self, Entry, Manifest};
use crate::model::{Digest, HashName, Meta};
use crate::project::Project;
use crate::snapshot::{self, Snapshot};
use crate::stage::{DVC_SUFFIX, Import, Output, Stage};
use crate::yaml::Value;

/// How to import.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The place in the workspace; the name of the data in the current folder by default.
    pub out: Option<String>,
    /// Replace what is there.
    pub force: bool,
    /// Only create the `.dvc` file.
    pub no_exec: bool,
    /// Record the versions of the files in a bucket that keeps them.
    pub version_aware: bool,
    /// Record the version of the data without copying it.
    pub no_download: bool,
    /// Send the data to this remote, or the default one (`Some(None)`), instead of the workspace.
    pub to_remote: Option<Option<String>>,
    /// Number of concurrent transfers.
    pub jobs: Option<usize>,
}

/// Imports a path of another repository.
///
/// # Errors
/// [`DataError::Exists`] if something is at the place of the output, [`DataError::NotInRepository`] if the repository has no such path.
pub async fn import(
    project: &mut Project,
    url: &str,
    path: &str,
    from: &external::Options,
    options: &Options,
    talk: &dyn Talk,
) -> Result<GitFiles, DataError> {
    let keys =
        vec![("path".to_owned(), Value::string(path)), ("repo".to_owned(), Value::Map(repository_keys(url, from)))];
    let mut stage = new_stage(project, path, options, Value::Map(keys))?;
    if !options.no_exec {
        announce(project, &stage, talk);
        let repository = open_source(project, &stage, from.revision.as_deref()).await?;
        lock_commit(&mut stage, &repository)?;
        if !options.no_download {
            take_files(project, &mut stage, &repository, options.jobs).await?;
            restore(project, &stage.outs[0], options.force, talk)?;
        }
        stage.seal();
    }
    finish(project, &stage)
}

/// Imports what is at a URL, or at a path on this machine. `from` are options of the service.
///
/// # Errors
/// [`DataError::Exists`] if something is at the place of the output, [`DataError::Missing`] if nothing is at the URL.
pub async fn import_url(
    project: &mut Project,
    url: &str,
    from: &[(String, String)],
    options: &Options,
    talk: &dyn Talk,
) -> Result<GitFiles, DataError> {
    if options.to_remote.is_some() && (options.no_exec || options.no_download || options.version_aware) {
        let reason = "--no-exec, --no-download and --version-aware cannot be combined with --to-remote";
        return Err(DataError::Invalid(reason.into()));
    }
    let mut written = url.to_owned();
    let absolute = project.absolute(url);
    let out = target_of(project, url, options.out.as_deref())?;
    if !is_url(url) && absolute.exists() && absolute.starts_with(&project.root) {
        written = relative_path(&absolute, out.parent().unwrap_or(Path::new("/"))).to_string_lossy().into_owned();
    }
    let mut keys = vec![("hash".to_owned(), Value::string("md5")), ("path".into(), Value::string(&written))];
    let mut settings: Vec<_> = from.iter().map(|(option, value)| (option.clone(), Value::string(value))).collect();
    if options.version_aware {
        settings.push(("version_aware".into(), Value::Bool(true)));
    }
    if !settings.is_empty() {
        keys.push(("fs_config".into(), Value::Map(settings)));
    }
    let mut stage = new_stage(project, url, options, Value::Map(keys))?;
    if let Some(remote) = &options.to_remote {
        let location = open_location(project, &stage)?;
        let item = existing_item(&location).await?;
        let tags = version_of_tags(&location, &item, options.jobs).await?;
        let sent =
            super::add_external::transfer(project, &location, &item, remote.as_deref(), options.jobs, "import-url")
                .await?;
        stage.identify_dependency(tags.unwrap_or_else(|| version_of_content(&sent)));
        set_output(&mut stage.outs[0], &sent);
        stage.seal();
    } else if !options.no_exec {
        announce(project, &stage, talk);
        let location = open_location(project, &stage)?;
        stage.outs[0].can_push = !location.keeps_versions();
        take_location(project, &mut stage, &location, None, options.no_download, options.jobs).await?;
        if !options.no_download {
            restore(project, &stage.outs[0], options.force, talk)?;
        }
        stage.seal();
    }
    project.state.save()?;
    finish(project, &stage)
}

pub(super) fn announce(project: &Project, stage: &Stage, talk: &dyn Talk) {
    let source = match stage.import() {
        Some(Import::Repository { url, path, .. }) => format!("{path} ({})", external::redact(&url)),
        Some(Import::Url(url)) if is_url(&url) => external::redact(&url),
        Some(Import::Url(path)) => {
            let folder = stage.file.parent().unwrap_or(Path::new("/"));
            let full = crate::config::normalise(&folder.join(path));
            if full.starts_with(&project.root) { project.display(&full) } else { full.display().to_string() }
        }
        None => return,
    };
    talk.tell(&format!("Importing '{source}' -> '{}'", stage.outs[0].display(&project.current, &project.root)));
}

/// The place in the workspace of data from elsewhere: `out`, or a name in the folder `out`, by default the last name of the source.
pub(super) fn target_of(project: &Project, source: &str, out: Option<&str>) -> Result<PathBuf, DataError> {
    let path = source.split_once("://").map_or(source, |(_, rest)| rest);
    let name = Path::new(path.trim_end_matches('/')).file_name().and_then(|name| name.to_str());
    let name =
        name.ok_or_else(|| DataError::Invalid(format!("'{source}' does not end with a name; choose one with -o")))?;
    let target = match out {
        None => project.absolute(name),
        Some(out) if project.absolute(out).is_dir() => project.absolute(out).join(name),
        Some(out) => project.absolute(out),
    };
    if !target.starts_with(&project.root) || target == project.root {
        return Err(DataError::Invalid(format!("'{}' is not inside of the project", project.display(&target))));
    }
    if target.strip_prefix(&project.root).is_ok_and(is_reserved) {
        return Err(DataError::Reserved(target));
    }
    Ok(target)
}

/// The stage of a new import, whose output does not overlap with others.
fn new_stage(project: &Project, source: &str, options: &Options, dependency: Value) -> Result<Stage, DataError> {
    let target = target_of(project, source, options.out.as_deref())?;
    if !options.force && target.symlink_metadata().is_ok() {
        return Err(DataError::Exists(project.display(&target)));
    }
    check_links(project, &target)?;
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let file = target.with_file_name(format!("{name}{DVC_SUFFIX}"));
    let mut stage = Stage::for_import(file.clone(), target.clone(), name, dependency, true);
    if let Ok(old) = Stage::load(&file, &project.root) {
        stage.keep_text_of(&old);
    }
    check_overlaps(project, &project.stages()?, &[&stage])?;
    if let Some(git) = &project.git {
        if let Some(path) = git.first_tracked(&[&target])? {
            return Err(DataError::TrackedByGit(project.display(path)));
        }
        if !git.ignored(&[&file])?.is_empty() {
            return Err(DataError::Invalid(format!("bad DVC file name '{}' is git-ignored.", project.display(&file))));
        }
    }
    Ok(stage)
}

/// The keys of `repo` in DVC's order.
fn repository_keys(url: &str, from: &external::Options) -> Vec<(String, Value)> {
    let mut keys = vec![("url".to_owned(), Value::string(url))];
    keys.extend(from.revision.as_ref().map(|rev| ("rev".to_owned(), Value::string(rev))));
    let options = |pairs: &[(String, String)]| {
        Value::Map(pairs.iter().map(|(option, value)| (option.clone(), Value::string(value))).collect())
    };
    let config = from.config.as_ref().map(|file| Value::string(file.to_string_lossy()));
    match (&from.remote, from.remote_config.as_slice()) {
        (Some(name), pairs @ [_, ..]) => {
            let core = Value::Map(vec![("remote".into(), Value::string(name))]);
            let remote = Value::Map(vec![(name.clone(), options(pairs))]);
            keys.push(("config".into(), Value::Map(vec![("core".into(), core), ("remote".into(), remote)])));
        }
        (name, pairs) => {
            keys.extend(config.map(|config| ("config".to_owned(), config)));
            let remote = name.as_ref().map(Value::string).or_else(|| (!pairs.is_empty()).then(|| options(pairs)));
            keys.extend(remote.map(|remote| ("remote".to_owned(), remote)));
        }
    }
    keys
}

/// The options in a mapping.
fn pairs(value: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| match value {
        Value::Bool(value) => Some(value.to_string()),
        value => value.as_str().map(str::to_owned),
    };
    value.entries().iter().filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
}

/// The options with which the source of an import is opened.
fn source_options(project: &Project, stage: &Stage, revision: Option<&str>) -> external::Options {
    let mut options = external::Options { revision: revision.map(str::to_owned), ..external::Options::default() };
    let Some(Import::Repository { config, remote, .. }) = stage.import() else { return options };
    match &config {
        Some(Value::String(file)) => options.config = Some(project.root.join(file)),
        Some(sections) => {
            for (section, value) in sections.entries() {
                let named = section == "remote";
                let found: Vec<(String, Vec<(String, String)>)> = match named {
                    true => value.entries().iter().map(|(name, v)| (format!("remote \"{name}\""), pairs(v))).collect(),
                    false => vec![(section.clone(), pairs(value))],
                };
                for (section, pairs) in found {
                    options.settings.extend(pairs.into_iter().map(|(key, value)| (section.clone(), key, value)));
                }
            }
        }
        None => {}
    }
    match &remote {
        Some(Value::String(name)) => options.remote = Some(name.clone()),
        Some(settings) => options.remote_config = pairs(settings),
        None => {}
    }
    options
}

/// Opens the repository of an import at a revision. What it receives is stored in the project's cache.
pub(super) async fn open_source(
    project: &Project,
    stage: &Stage,
    revision: Option<&str>,
) -> Result<Repository, DataError> {
    let Some(Import::Repository { url, .. }) = stage.import() else {
        return Err(DataError::Invalid(format!("'{}' is not an import", stage.address(&project.current))));
    };
    let options = source_options(project, stage, revision);
    let folder = crate::project::cache_dir(&project.config, &project.root.join(crate::project::DVC_DIR));
    // As in DVC, a relative path is relative to the current folder.
    Repository::open(&url, &options, &project.current, &folder).await
}

/// Records the commit of the source.
pub(super) fn lock_commit(stage: &mut Stage, repository: &Repository) -> Result<(), DataError> {
    let commit = repository.commit.as_ref().ok_or_else(|| {
        DataError::Git(format!("{} is not a Git repository with a commit", external::redact(&repository.url)))
    })?;
    stage.set_dependency(true, vec![("rev_lock", Some(Value::string(commit)))]);
    Ok(())
}

/// Stores the data of a repository in the cache, and records its digest. Returns the number of files.
pub(super) async fn take_files(
    project: &Project,
    stage: &mut Stage,
    repository: &Repository,
    jobs: Option<usize>,
) -> Result<usize, DataError> {
    let Some(Import::Repository { path, .. }) = stage.import() else { return Ok(0) };
    let inner = path_in_repository(&path)?;
    let missing = || DataError::NotInRepository { path: path.clone(), url: external::redact(&repository.url) };
    let (is_folder, files) = repository.files(&inner).await?.ok_or_else(missing)?;
    let stored = repository.store(&files, &project.cache, jobs).await?;
    let snapshot = snapshot_of(is_folder, &files, stored);
    if let Some(manifest) = &snapshot.manifest {
        project.cache.put_manifest(manifest)?;
    }
    set_output(&mut stage.outs[0], &snapshot);
    Ok(files.len())
}

/// The identity of files that are in the cache.
fn snapshot_of(is_folder: bool, files: &[Tracked], stored: Vec<(Digest, u64)>) -> Snapshot {
    if let (false, Some((digest, size))) = (is_folder, stored.first()) {
        let meta = Meta { size: Some(*size), ..Meta::default() };
        return Snapshot { digest: *digest, meta, manifest: None, files: Vec::new() };
    }
    let entry =
        |(file, (digest, size)): (&Tracked, (Digest, u64))| Entry { path: file.path.clone(), digest, size: Some(size) };
    let manifest = Manifest::new(files.iter().zip(stored).map(entry).collect());
    let meta = Meta { size: manifest.size(), nfiles: Some(manifest.entries.len() as u64), is_exec: false };
    Snapshot { digest: manifest.digest(), meta, manifest: Some(manifest), files: Vec::new() }
}

/// The normal form of a path in a repository.
///
/// # Errors
/// [`DataError::Invalid`] if it leaves the repository.
pub(super) fn path_in_repository(path: &str) -> Result<String, DataError> {
    let normal = crate::config::normalise(Path::new(path.trim_start_matches('/')));
    let text = normal.to_str().unwrap_or_default();
    if text.starts_with("..") {
        return Err(DataError::Invalid(format!("'{path}' is not inside of the repository")));
    }
    Ok(if text == "." { String::new() } else { text.to_owned() })
}

pub(super) fn set_output(out: &mut Output, snapshot: &Snapshot) {
    (out.hash, out.digest, out.meta) = (HashName::Md5, Some(snapshot.digest), snapshot.meta);
}

/// The location of an import from a URL. As in DVC, a relative path is relative to the folder of the `.dvc` file.
pub(super) fn open_location(project: &Project, stage: &Stage) -> Result<Location, DataError> {
    let Some(Import::Url(url)) = stage.import() else {
        return Err(DataError::Invalid(format!("'{}' is not an import", stage.address(&project.current))));
    };
    let mut settings = stage.dependency("fs_config").map(pairs).unwrap_or_default();
    if stage.source_files().is_some() {
        // Recorded versions are used also after the remote's option was removed.
        settings.push(("version_aware".into(), "true".into()));
    }
    Location::open(&url, &project.config, &settings, stage.file.parent().unwrap_or(Path::new("/")))
}

pub(super) async fn existing_item(location: &Location) -> Result<Item, DataError> {
    let item = location.item().await?;
    item.ok_or_else(|| DataError::Missing(external::redact(&location.written)))
}

/// The identity of the data at a location; with a cache, the data is stored in it.
pub(super) async fn take_item(
    project: &Project,
    location: &Location,
    item: &Item,
    cache: Option<&Cache>,
    jobs: Option<usize>,
) -> Result<Snapshot, DataError> {
    let take = |path: &Path| snapshot::take(path, &project.rules, &project.state, HashName::Md5, cache);
    let taken = match location.local() {
        Some(path) => take(path)?,
        None => {
            let folder = tempfile::tempdir_in(project.tmp()).map_err(DataError::io(project.tmp()))?;
            let received = folder.path().join("data");
            location.download(item, &received, jobs).await?;
            take(&received)?
        }
    };
    taken.ok_or_else(|| DataError::Missing(external::redact(&location.written)))
}

/// The keys of a dependency that identify its data, with their values.
pub(super) type Version = Vec<(&'static str, Option<Value>)>;

/// The version of data that is identified by its content.
pub(super) fn version_of_content(taken: &Snapshot) -> Version {
    let number = |value: Option<u64>| value.map(Value::number);
    vec![
        ("md5", Some(Value::string(taken.digest.to_string()))),
        ("size", number(taken.meta.size)),
        ("nfiles", number(taken.meta.nfiles)),
        ("isexec", taken.meta.is_exec.then_some(Value::Bool(true))),
    ]
}

/// The version of data that is identified by the tags of its files; `None` if it has none.
///
/// # Errors
/// If a folder cannot be listed.
pub(super) async fn version_of_tags(
    location: &Location,
    item: &Item,
    jobs: Option<usize>,
) -> Result<Option<Version>, DataError> {
    if location.has_digests() {
        return Ok(None);
    }
    let number = |value: Option<u64>| value.map(Value::number);
    if !item.is_folder {
        let tag = item.tag.clone().map(Value::String);
        return Ok(Some(vec![(location.tag_key(), tag), ("size", number(item.size))]));
    }
    let files = location.files(item, jobs).await?;
    let size = files.iter().map(|file| file.size).sum();
    let count = u64::try_from(files.len()).ok();
    let tags = files.into_iter().map(|file| (file.path, file.tag.unwrap_or_default()));
    let digest = manifest::digest_of_tags(location.tag_key(), tags);
    Ok(Some(vec![("md5", Some(Value::string(digest.to_string()))), ("size", number(size)), ("nfiles", number(count))]))
}

/// Stores the data of a URL in the cache, and records its version and digest; with `only_record`, the version only. `revision` is the version of a
/// file in a bucket that keeps versions; by default, the newest.
pub(super) async fn take_location(
    project: &mut Project,
    stage: &mut Stage,
    location: &Location,
    revision: Option<&str>,
    only_record: bool,
    jobs: Option<usize>,
) -> Result<(), DataError> {
    if location.keeps_versions() {
        return source_versions::take(project, stage, location, revision, only_record, jobs).await;
    }
    let item = existing_item(location).await?;
    // Tags are read before the data, so that a change in between is found by the next update.
    let mut version = version_of_tags(location, &item, jobs).await?;
    if version.is_none() || !only_record {
        let taken = take_item(project, location, &item, (!only_record).then_some(&project.cache), jobs).await?;
        version.get_or_insert_with(|| version_of_content(&taken));
        if !only_record {
            set_output(&mut stage.outs[0], &taken.into_copy());
        }
    }
    stage.identify_dependency(version.unwrap_or_default());
    Ok(())
}

/// Writes the `.dvc` file and the entry in `.gitignore`.
pub(super) fn finish(project: &Project, stage: &Stage) -> Result<GitFiles, DataError> {
    let mut git_files = GitFiles::default();
    if let (Some(git), Some(path)) = (&project.git, &stage.outs[0].path)
        && git.ignored(&[path])?.is_empty()
        && gitignore::add(path)?
    {
        git_files.push(path.with_file_name(".gitignore"));
    }
    stage.save()?;
    git_files.push(stage.file.clone());
    git_files.finish(project)
}

/// Receives the data of imports that the cache lacks from their repositories and buckets with versions, of each import also when others failed.
///
/// # Errors
/// If the cache cannot be read. Failures of imports are among the outcomes.
pub(super) async fn fetch(
    project: &Project,
    stages: &[Stage],
    jobs: Option<usize>,
    outcomes: &mut Outcomes,
) -> Result<(), DataError> {
    for stage in stages {
        let out = &stage.outs[0];
        let Some(digest) = out.digest else { continue };
        if !in_cache(project, out.hash, &digest)? {
            let name = out.display(&project.current, &project.root);
            outcomes.add(&name, receive(project, stage, &digest, jobs).await);
        }
    }
    Ok(())
}

/// Receives the data of an import, and returns the number of files.
///
/// # Errors
/// [`DataError::Corrupt`] if its source no longer has the recorded data.
async fn receive(project: &Project, stage: &Stage, digest: &Digest, jobs: Option<usize>) -> Result<u64, DataError> {
    let Some(Import::Repository { commit: Some(commit), .. }) = stage.import() else {
        return source_versions::fetch(project, stage, jobs).await;
    };
    let repository = open_source(project, stage, Some(&commit)).await?;
    let mut taken = stage.clone();
    let files = take_files(project, &mut taken, &repository, jobs).await?;
    if taken.outs[0].digest != Some(*digest) && stage.outs[0].hash == HashName::Md5 {
        let place = PathBuf::from(external::redact(&repository.url));
        return Err(DataError::Corrupt { oid: digest.to_string(), place });
    }
    Ok(files as u64)
}
