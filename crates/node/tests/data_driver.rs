//! The data driver over its sockets, as the kubelet calls it, with a real repository and recorded mounts.

#![allow(clippy::unwrap_used, clippy::panic)] // these are tests

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use parking_lot::Mutex;
use slipway_core::data_volume::DRIVER;
use slipway_data::commands::{add, init};
use slipway_data::project::Project;
use slipway_data::versions::Depot;
use slipway_node::NodeError;
use slipway_node::data::{Mounts, Options, serve};
use slipway_node::kubelet;
use slipway_node::kubelet::csi as api;
use slipway_node::kubelet::csi::node_client::NodeClient;
use slipway_node::kubelet::registration::InfoRequest;
use slipway_node::kubelet::registration::registration_client::RegistrationClient;
use tonic::Code;
use tonic::transport::Channel;

/// The mounted folders by their targets.
#[derive(Default)]
struct Recorded(Mutex<BTreeMap<PathBuf, PathBuf>>);

impl Mounts for Recorded {
    fn bind(&self, source: &Path, target: &Path) -> std::io::Result<()> {
        assert!(target.is_dir());
        self.0.lock().insert(target.to_owned(), source.to_owned());
        Ok(())
    }

    fn unbind(&self, target: &Path) -> std::io::Result<()> {
        self.0.lock().remove(target).map(drop).ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    fn is_mounted(&self, target: &Path) -> std::io::Result<bool> {
        Ok(self.0.lock().contains_key(target))
    }
}

/// A node with a driver, and a project with the tracked folder `images` and the tracked files `labels` and `notes`.
struct Node {
    folder: PathBuf,
    mounts: Arc<Recorded>,
    client: NodeClient<Channel>,
    driver: JoinHandle,
}

type JoinHandle = tokio::task::JoinHandle<Result<(), NodeError>>;

impl Drop for Node {
    fn drop(&mut self) {
        self.driver.abort();
        // Trees are read-only folders.
        let _ = Command::new("chmod").arg("-R").arg("u+w").arg(&self.folder).status();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Connects to a socket of the driver, which opens its sockets one after another.
async fn connect(socket: &Path) -> Channel {
    loop {
        match kubelet::connect(socket).await {
            Ok(channel) => break channel,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

impl Node {
    async fn start(limit: Option<u64>) -> Self {
        let folder = std::env::temp_dir().join(format!("slipway-node-data-{}", slipway_core::ids::hex32()));
        let project = folder.join("project");
        std::fs::create_dir_all(project.join("images")).unwrap();
        let git = |arguments: &[&str]| {
            let identity = ["-c", "user.name=me", "-c", "user.email=me@example.invalid"];
            let done = Command::new("git").args(identity).args(arguments).current_dir(&project).status();
            assert!(done.unwrap().success(), "{arguments:?}");
        };
        git(&["init", "-q"]);
        init::init(&project, init::Options::default()).unwrap();
        std::fs::write(project.join("images/cat"), "cat").unwrap();
        std::fs::write(project.join("labels"), "1").unwrap();
        std::fs::write(project.join("notes"), "2").unwrap();
        let config = format!(
            "[core]\n    remote = store\n['remote \"store\"']\n    url = {}\n",
            folder.join("remote").display()
        );
        std::fs::write(project.join(".dvc/config"), config).unwrap();
        let mut opened = Project::open(&project, &|_| ()).unwrap();
        add::add(&mut opened, &["images".into(), "labels".into(), "notes".into()], &add::Options::default()).unwrap();
        drop(opened);
        git(&["add", "-A"]);
        git(&["commit", "-qm", "data"]);
        std::fs::rename(project.join(".dvc/cache"), folder.join("remote")).unwrap();

        let options =
            Options { node: "n1".into(), kubelet: folder.join("kubelet"), folder: folder.join("cache"), limit };
        let mounts = Arc::new(Recorded::default());
        let depot = Arc::new(Depot::open(&options.folder, limit).unwrap());
        let socket = options.kubelet.join("plugins").join(DRIVER).join("csi.sock");
        let (used, folder_of_kubelet) = (Arc::clone(&mounts) as Arc<dyn Mounts>, options.kubelet.clone());
        let driver = tokio::spawn(async move { serve(&options, depot, used, std::future::pending()).await });
        let channel = connect(&socket).await;
        let registration = folder_of_kubelet.join("plugins_registry").join(format!("{DRIVER}@reg.sock"));
        let info =
            RegistrationClient::new(connect(&registration).await).get_info(InfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.r#type.as_str(), info.endpoint), ("CSIPlugin", socket.display().to_string()));
        Self { folder, mounts, client: NodeClient::new(channel), driver }
    }

    fn target(&self, id: &str) -> PathBuf {
        self.folder.join("pods").join(id).join("mount")
    }

    /// Publishes a path of the project as a volume, and returns the mounted folder.
    async fn publish(&self, id: &str, path: &str) -> Result<PathBuf, tonic::Status> {
        let project = Project::open(&self.folder.join("project"), &|_| ()).unwrap();
        let digest = slipway_data::versions::digests_at(&project, path, None).unwrap()[0].to_string();
        let commit = project.git.as_ref().unwrap().head().unwrap().commit;
        drop(project);
        self.publish_as(id, &[("path", path), ("digest", &digest), ("rev", &commit)]).await
    }

    async fn publish_as(&self, id: &str, attributes: &[(&str, &str)]) -> Result<PathBuf, tonic::Status> {
        let mut volume_context: std::collections::HashMap<String, String> =
            attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        volume_context.insert("repo".into(), format!("file://{}", self.folder.join("project").display()));
        let target = self.target(id);
        let target_path = target.display().to_string();
        let request =
            api::NodePublishVolumeRequest { volume_id: id.into(), target_path, volume_context, ..Default::default() };
        self.client.clone().node_publish_volume(request).await?;
        Ok(self.mounts.0.lock()[&target].clone())
    }

    async fn unpublish(&self, id: &str) {
        let target_path = self.target(id).display().to_string();
        let request = api::NodeUnpublishVolumeRequest { volume_id: id.into(), target_path };
        self.client.clone().node_unpublish_volume(request).await.unwrap();
        assert!(!self.target(id).exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn second_pod_of_a_node_needs_no_transfer() {
    let node = Node::start(None).await;
    let first = node.publish("one", "images").await.unwrap();
    assert_eq!(std::fs::read_to_string(first.join("cat")).unwrap(), "cat");
    let labels = node.publish("labels", "labels").await.unwrap();
    assert_eq!(std::fs::read_to_string(labels.join("file")).unwrap(), "1");
    std::fs::remove_dir_all(node.folder.join("remote")).unwrap();
    assert_eq!(node.publish("two", "images").await.unwrap(), first);
    assert_eq!(node.publish("two", "images").await.unwrap(), first, "the kubelet may repeat a request");
    node.unpublish("one").await;
    node.unpublish("one").await;
    assert_eq!(node.mounts.0.lock().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_bytes_are_explained_and_fetched_when_they_are_there() {
    let node = Node::start(None).await;
    let (remote, away) = (node.folder.join("remote"), node.folder.join("away"));
    std::fs::rename(&remote, &away).unwrap();
    let missing = node.publish("one", "labels").await.unwrap_err();
    assert_eq!(missing.code(), Code::FailedPrecondition);
    assert!(
        missing.message().contains("1 of 1 objects of 'labels'") && missing.message().contains("push"),
        "{missing}"
    );
    std::fs::rename(&away, &remote).unwrap();
    node.publish("one", "labels").await.unwrap();
    let other = [("path", "labels"), ("rev", "HEAD"), ("digest", "d41d8cd98f00b204e9800998ecf8427e")];
    let wrong = node.publish_as("two", &other).await.unwrap_err();
    assert!(wrong.message().contains("not d41d8cd98f00b204e9800998ecf8427e"), "{wrong}");
    for (id, attributes) in [("../x", &other[..]), ("", &other[..]), ("three", &other[..2])] {
        assert_eq!(node.publish_as(id, attributes).await.unwrap_err().code(), Code::InvalidArgument, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mounted_data_is_not_evicted() {
    let node = Node::start(Some(1)).await;
    let images = node.publish("one", "images").await.unwrap();
    let labels = node.publish("two", "labels").await.unwrap();
    assert!(images.join("cat").exists() && labels.join("file").exists(), "both are in use");
    // The next transfer removes what no pod uses.
    node.unpublish("one").await;
    let notes = node.publish("three", "notes").await.unwrap();
    assert!(!images.exists() && labels.join("file").exists() && notes.join("file").exists());
}
