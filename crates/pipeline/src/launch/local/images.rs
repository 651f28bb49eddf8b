//! Which images need no container on this machine, and how the others are run with a container engine.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::OnceCell;

use super::programs;

/// Engines in the order in which they are tried.
const ENGINES: &[&str] = &["podman", "docker", "nerdctl"];
/// Timeout of an engine that reports whether it works.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
/// Timeout of an engine that kills or removes a container.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Images of plain operating systems and Pythons: a step that uses one needs nothing of it but common programs. The name is compared
/// without registry, tag and digest.
const PLAIN_IMAGES: &[&str] = &[
    "python",
    "ubi*/python-*",
    "python-*",
    "alpine",
    "busybox",
    "containerd/busybox",
    "debian",
    "ubuntu",
    "fedora",
    "ubi*",
    "ubi*/ubi*",
    "bash",
];

/// Maps images to an environment of this machine. As text it is `PATTERN=FOLDER`, or `PATTERN` for the programs of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageMapping {
    /// The image, with `*` for any text: `ghcr.io/team/train:*`.
    pub pattern: String,
    /// A virtual environment or another folder with `bin`, whose programs the steps use; the programs of this machine if unset.
    pub environment: Option<PathBuf>,
}

impl FromStr for ImageMapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, folder) = match text.rsplit_once('=') {
            Some((pattern, folder)) => (pattern.trim(), Some(folder.trim())),
            None => (text.trim(), None),
        };
        if pattern.is_empty() || folder.is_some_and(|folder| !folder.starts_with('/')) {
            return Err(format!(
                "'{text}' is not PATTERN=FOLDER with an absolute path, as in 'ghcr.io/team/train:*=/opt/train'"
            ));
        }
        Ok(Self { pattern: pattern.to_owned(), environment: folder.map(PathBuf::from) })
    }
}

/// What executes the steps of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The programs of this machine.
    Machine,
    /// An environment of this machine.
    Environment(PathBuf),
    /// A container engine: its name.
    Engine(PathBuf),
}

/// Finds what executes an image; `None` if nothing can.
pub(super) async fn place(image: &str, mappings: &[ImageMapping], engine: &Engine) -> Option<Place> {
    if let Some(mapping) = mappings.iter().find(|mapping| matches(&mapping.pattern, image)) {
        return Some(mapping.environment.clone().map_or(Place::Machine, Place::Environment));
    }
    if image.is_empty() || PLAIN_IMAGES.iter().any(|pattern| matches(pattern, repository(image))) {
        return Some(Place::Machine);
    }
    engine.find().await.map(Place::Engine)
}

/// The name of an image without registry, tag and digest, and without the namespace of Docker's official images.
fn repository(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let name = match name.split_once('/') {
        Some((registry, rest)) if registry.contains(['.', ':']) || registry == "localhost" => rest,
        _ => name,
    };
    let name = name.rsplit_once(':').map_or(name, |(name, _)| name);
    name.strip_prefix("library/").unwrap_or(name)
}

/// Compares a text with a pattern in which `*` stands for any text without `/`.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            let end = rest.find('/').unwrap_or(rest.len());
            (0..=end).filter(|at| rest.is_char_boundary(*at)).any(|at| matches(after, &rest[at..]))
        }),
    }
}

/// The container engine of this machine, which is probed once.
#[derive(Debug, Default)]
pub(super) struct Engine(OnceCell<Option<PathBuf>>);

impl Engine {
    async fn find(&self) -> Option<PathBuf> {
        let probe = || async {
            for name in ENGINES {
                let Some(program) = programs::find(name) else { continue };
                let mut command = Command::new(&program);
                let null = Stdio::null;
                command.arg("info").stdin(null()).stdout(null()).stderr(null()).kill_on_drop(true);
                if let Ok(Ok(status)) = tokio::time::timeout(PROBE_TIMEOUT, command.status()).await
                    && status.success()
                {
                    return Some(program);
                }
            }
            None
        };
        self.0.get_or_init(probe).await.clone()
    }

    /// Removes the container whose id is in a file, if there is one. An engine removes a container when its program ends, but not when the
    /// engine's own process was killed: the container goes on without it.
    pub(super) async fn remove(&self, id_file: &Path) {
        let Ok(id) = tokio::fs::read_to_string(id_file).await else { return };
        let Some(engine) = self.find().await else { return };
        for words in [&["kill"][..], &["rm", "--force"]] {
            let mut command = Command::new(&engine);
            command.args(words).arg(id.trim()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // Fails if the container has ended, or was removed already.
            let _ = tokio::time::timeout(REMOVE_TIMEOUT, command.kill_on_drop(true).status()).await;
        }
        let _ = tokio::fs::remove_file(id_file).await; // otherwise the next call removes nothing
    }
}

/// What a container is started with.
#[derive(Debug)]
pub(super) struct Container<'a> {
    pub(super) image: &'a str,
    pub(super) command: &'a [String],
    pub(super) args: &'a [String],
    /// Names of environment variables, whose values the engine takes from its own environment.
    pub(super) variables: Vec<&'a str>,
    /// Folders and the paths at which they are mounted.
    pub(super) mounts: Vec<(PathBuf, String)>,
    pub(super) folder: &'a Path,
    /// File into which the engine writes the id of the container.
    pub(super) id_file: &'a Path,
}

impl Container<'_> {
    /// Arguments of the engine, which removes the container at its end.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut words: Vec<String> = ["run", "--rm", "--init", "--network", "host"].map(str::to_owned).to_vec();
        for name in &self.variables {
            words.extend(["--env".to_owned(), (*name).to_owned()]);
        }
        for (folder, path) in &self.mounts {
            words.extend(["--volume".to_owned(), format!("{}:{path}", folder.display())]);
        }
        words.extend(["--workdir".to_owned(), self.folder.display().to_string()]);
        words.extend(["--cidfile".to_owned(), self.id_file.display().to_string()]);
        if let Some(program) = self.command.first() {
            words.extend(["--entrypoint".to_owned(), program.clone()]);
        }
        words.push(self.image.to_owned());
        words.extend(self.command.iter().skip(1).chain(self.args).cloned());
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_images_are_recognized_without_registry_and_tag() {
        let is_plain = |image: &str| PLAIN_IMAGES.iter().any(|pattern| matches(pattern, repository(image)));
        for image in [
            "python:3.11",
            "docker.io/library/python:3.9-slim",
            "registry.access.redhat.com/ubi9/python-311:latest",
            "python:alpine3.9",
            "alpine",
            "ghcr.io/containerd/busybox",
            "localhost:5000/ubuntu:24.04@sha256:00",
        ] {
            assert!(is_plain(image), "{image}");
        }
        for image in ["gcr.io/my-image", "google/cloud-sdk:slim", "team/python", "python/x/y", "pythonx", "dummy"] {
            assert!(!is_plain(image), "{image}");
        }
        assert!(matches("ghcr.io/team/*:1", "ghcr.io/team/train:1") && !matches("ghcr.io/*:1", "ghcr.io/a/b:1"));
    }

    #[test]
    fn mappings_are_read_from_text() {
        let mapping: ImageMapping = " ghcr.io/team/train:* = /opt/train".parse().unwrap();
        let expected = ("ghcr.io/team/train:*", Some(PathBuf::from("/opt/train")));
        assert_eq!((mapping.pattern.as_str(), mapping.environment), expected);
        assert!("team/tools".parse::<ImageMapping>().unwrap().environment.is_none());
        assert!("a=relative".parse::<ImageMapping>().is_err() && "=/opt".parse::<ImageMapping>().is_err());
    }

    #[test]
    fn container_gets_values_of_variables_from_the_engine_only() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let (command, args) = (words(&["sh", "-c"]), words(&["exit"]));
        let container = Container {
            image: "gcr.io/image",
            command: &command,
            args: &args,
            variables: vec!["TOKEN"],
            mounts: vec![("/a".into(), "/b".into())],
            folder: Path::new("/a/work"),
            id_file: Path::new("/a/container"),
        };
        let expected = "run --rm --init --network host --env TOKEN --volume /a:/b --workdir /a/work --cidfile /a/container \
                        --entrypoint sh gcr.io/image -c exit";
        assert_eq!(container.arguments().join(" "), expected);
    }
}
