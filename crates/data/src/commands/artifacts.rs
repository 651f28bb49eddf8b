//! `artifacts get`: copies an artifact of another repository by its name and version. Versions and stages are tags of Git in the form of GTO,
//! `NAME@v1.2.3` and `NAME#STAGE#1`; the paths are in `dvc.yaml`.

use std::path::Path;

use super::get;
use crate::error::DataError;
use crate::external::{self, Repository};
use crate::stage::PIPELINE_FILE;
use crate::yaml;

/// Which version of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// The greatest one.
    Greatest,
    /// This one, with its `v`.
    Exact(String),
    /// The one that a stage has, such as `prod`.
    Stage(String),
}

/// The commit and path of an artifact.
#[derive(Debug)]
pub struct Artifact {
    /// The commit.
    pub commit: String,
    /// The path in the repository.
    pub path: String,
}

/// Finds an artifact, named `NAME` or `FOLDER:NAME`, in another repository.
///
/// # Errors
/// [`DataError::Invalid`] if the repository has no such artifact or version.
pub async fn find(
    url: &str,
    name: &str,
    version: &Version,
    from: &external::Options,
    current: &Path,
) -> Result<Artifact, DataError> {
    let (folder, short) = name.rsplit_once(':').unwrap_or(("", name));
    let folder = folder.strip_suffix(PIPELINE_FILE).unwrap_or(folder).trim_matches('/');
    let scratch = get::scratch()?;
    let newest = Repository::open(url, from, current, scratch.path()).await?;
    let tagged = if folder.is_empty() { short.to_owned() } else { format!("{folder}={short}") };
    let missing = || {
        DataError::Invalid(format!("unable to find artifact '{name}' with the version in {}", external::redact(url)))
    };
    let commit = select(&newest.annotated_tags()?, &tagged, version).ok_or_else(missing)?;
    let at = external::Options { revision: Some(commit.clone()), ..from.clone() };
    let repository = Repository::open(url, &at, current, scratch.path()).await?;
    let file = if folder.is_empty() { PIPELINE_FILE.to_owned() } else { format!("{folder}/{PIPELINE_FILE}") };
    let text = repository.text(&file)?.ok_or_else(missing)?;
    let place = Path::new(&file);
    let value = yaml::parse(&text).map_err(|error| DataError::file(place, error.line, error.reason))?;
    let artifact = value.get("artifacts").and_then(|artifacts| artifacts.get(short));
    let path = artifact.and_then(|artifact| artifact.get("path")?.as_str());
    let path = path.ok_or_else(missing)?;
    let path = if folder.is_empty() { path.to_owned() } else { format!("{folder}/{path}") };
    Ok(Artifact { commit, path })
}

/// The commit of a version. `tags` are sorted by time.
fn select(tags: &[(String, String)], name: &str, version: &Version) -> Option<String> {
    let commit = |wanted: &str| {
        let matches = |tag: &str| tag == wanted || tag.strip_prefix(wanted).is_some_and(is_counter);
        tags.iter().rfind(|(tag, _)| matches(tag)).map(|(_, commit)| commit.clone())
    };
    match version {
        Version::Exact(version) => commit(&format!("{name}@{version}")),
        Version::Stage(stage) => commit(&format!("{name}#{stage}")),
        Version::Greatest => {
            let number = |tag: &str| semantic(tag.strip_prefix(name)?.strip_prefix("@v")?);
            tags.iter().filter_map(|(tag, commit)| Some((number(tag)?, commit))).max().map(|(_, commit)| commit.clone())
        }
    }
}

fn is_counter(text: &str) -> bool {
    text.strip_prefix('#').is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The order of versions: three numbers, and a release after its pre-releases.
fn semantic(version: &str) -> Option<([u64; 3], bool, String)> {
    let version = version.split('+').next()?;
    let (numbers, pre) = version.split_once('-').map_or((version, ""), |(numbers, pre)| (numbers, pre));
    let mut parts = numbers.split('.').map(|part| part.parse().ok());
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then(|| (numbers, pre.is_empty(), pre.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_stages_are_found() {
        let tags: Vec<(String, String)> = [
            "m@v1.9.0",
            "m@v1.10.0-rc1",
            "m@v1.10.0",
            "other@v9.0.0",
            "m@v1.2.0",
            "m#prod#1",
            "m#dev#2",
            "m#prod#3",
            "m@v2.0.0!",
        ]
        .iter()
        .enumerate()
        .map(|(i, tag)| ((*tag).to_owned(), i.to_string()))
        .collect();
        let found = |version| select(&tags, "m", &version);
        assert_eq!(found(Version::Greatest).as_deref(), Some("2"));
        assert_eq!(found(Version::Exact("v1.9.0".into())).as_deref(), Some("0"));
        assert_eq!(found(Version::Exact("v1.1".into())), None);
        assert_eq!(found(Version::Stage("prod".into())).as_deref(), Some("7"));
        assert_eq!(found(Version::Stage("pro".into())), None);
    }
}
