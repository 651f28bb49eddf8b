//! The repositories of versioned data that the server reads: what it shows of a real one, and attacks.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use slipway_data::cache::Cache;
use slipway_data::manifest::{Entry, Manifest, digest_of};
use slipway_data::{Digest, HashName};

use super::TestServer;

const ALL: &str = "/api/v1/data/repositories";

/// A repository with a DVC project in a temporary folder.
pub(super) struct Repository {
    folder: PathBuf,
    cache: Cache,
}

impl Drop for Repository {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder); // A folder left behind in /tmp must not fail a test.
    }
}

impl Repository {
    pub(super) fn new() -> Self {
        let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
        std::fs::create_dir(&folder).unwrap();
        let cache = Cache::new(&folder.join(".dvc/cache"), HashName::Md5, false);
        let repository = Self { folder, cache };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository.write(
            ".dvc/config",
            "[core]\n    remote = store\n['remote \"store\"']\n    url = https://me:secret@127.0.0.1:1/store\n",
        );
        repository.write(".gitignore", "/.dvc/cache\n");
        repository
    }

    pub(super) fn path(&self) -> &Path {
        &self.folder
    }

    fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=Ada", "-c", "user.email=a@example.com"])
            .arg("-C")
            .arg(self.path())
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(super) fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", message]);
        self.git(&["rev-parse", "HEAD"])
    }

    fn put(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of_file(digest_of(bytes).md5);
        self.cache.put(&digest, bytes).unwrap();
        digest
    }

    /// Tracks a folder `images` with these files.
    pub(super) fn track(&self, files: &[(&str, &[u8])]) -> Digest {
        let entry = |(path, bytes): &(&str, &[u8])| Entry { path: (*path).into(), digest: self.put(bytes), size: None };
        let manifest = Manifest::new(files.iter().map(entry).collect());
        let digest = self.cache.put_manifest(&manifest).unwrap();
        let size: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
        self.write(
            "images.dvc",
            &format!(
                "outs:\n- md5: {digest}\n  size: {size}\n  nfiles: {}\n  hash: md5\n  path: images\n",
                files.len()
            ),
        );
        digest
    }
}

fn json_of(reply: &super::Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&reply.body)))
}

async fn register(server: &TestServer, name: &str, location: &Path) {
    let body = json!({ "name": name, "location": location }).to_string();
    let reply = server.send_as("owner", "POST", ALL, &body).await;
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
}

async fn get(server: &TestServer, path: &str) -> Value {
    let reply = server.send_as("reader", "GET", &format!("{ALL}/{path}"), "").await;
    assert_eq!(reply.status, 200, "{path}: {}", String::from_utf8_lossy(&reply.body));
    json_of(&reply)
}

/// A picture of one pixel.
pub(super) const GIF: &[u8] = b"GIF89a\x01\x00\x01\x00\x00\x00\x00;";

#[tokio::test]
async fn data_sets_versions_differences_and_previews_are_shown() {
    let server = TestServer::open().await;
    let repository = Repository::new();
    let first = repository.track(&[("a/1.txt", b"one"), ("a/2.txt", b"two"), ("b.csv", b"x,y\n1,2\n")]);
    let old = repository.commit("First images");
    repository.git(&["tag", "v1"]);
    let second = repository.track(&[("a/1.txt", b"one"), ("a/2.txt", b"zwei"), ("c/p.gif", GIF)]);
    let new = repository.commit("More images");
    repository.write("README.md", "unrelated");
    repository.commit("Only text");
    register(&server, "digits", repository.path()).await;

    let summary = get(&server, "digits").await;
    assert_eq!(summary["subject"], "Only text");
    assert_eq!(summary["remotes"], json!([["store", "https://***@127.0.0.1:1/store"]]), "credentials are not shown");
    let sets = get(&server, "digits/datasets").await;
    let set = &sets["data_sets"][0];
    assert_eq!((&set["path"], &set["digest"]), (&json!("images"), &json!(second.to_string())));
    assert_eq!((&set["files"], &set["in_cache"], &set["is_folder"]), (&json!(3), &json!(true), &json!(true)));

    let versions = get(&server, "digits/versions?path=images").await;
    let listed: Vec<_> =
        versions["versions"].as_array().unwrap().iter().map(|v| (v["commit"].clone(), v["digest"].clone())).collect();
    assert_eq!(listed, [(json!(new), json!(second.to_string())), (json!(old), json!(first.to_string()))]);
    assert_eq!(versions["versions"][1]["names"], json!(["v1"]));

    let differences = get(&server, "digits/differences?path=images&from=v1&to=main").await;
    let total = &differences["total"];
    assert_eq!([&total["added"], &total["changed"], &total["removed"], &total["unchanged"]], [1, 1, 1, 1]);
    let files: Vec<_> = differences["files"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(files, ["a/2.txt", "b.csv", "c/p.gif"]);
    let page = get(&server, "digits/differences?path=images&from=v1&offset=1&limit=1").await;
    assert_eq!(page["files"].as_array().unwrap().len(), 1);
    assert_eq!(page["files"][0]["path"], "b.csv");

    let files = get(&server, "digits/files?path=images&rev=v1").await;
    assert_eq!(files["folders"], json!([{"name": "a", "files": 2}]));
    assert_eq!(files["files"][0]["name"], "b.csv");
    assert_eq!(files["total"], 2);
    let table = get(&server, "digits/preview?path=images/b.csv&rev=v1").await;
    assert_eq!(
        (&table["kind"], &table["columns"], &table["rows"]),
        (&json!("table"), &json!(["x", "y"]), &json!([["1", "2"]]))
    );
    assert_eq!(get(&server, "digits/preview?path=images/a/2.txt").await["text"], "zwei");
    assert_eq!(get(&server, "digits/preview?path=images/c/p.gif").await["kind"], "picture");
    let picture = server.send_as("reader", "GET", &format!("{ALL}/digits/picture?path=images/c/p.gif"), "").await;
    assert_eq!((picture.status.as_u16(), &picture.body[..]), (200, GIF));
    assert_eq!(picture.headers["content-type"], "image/gif");
    assert_eq!(picture.headers["x-content-type-options"], "nosniff");
    assert!(picture.headers["content-security-policy"].to_str().unwrap().contains("sandbox"));
    let text = server.send_as("reader", "GET", &format!("{ALL}/digits/picture?path=images/a/1.txt"), "").await;
    assert_eq!(text.status, 422, "only pictures are sent");

    let places = get(&server, "digits/places?path=images").await;
    assert_eq!(places["cache"], json!({"checked": 4, "present": 4}));
    assert_eq!(places["remotes"][0]["present"], Value::Null, "the remote cannot be reached");
    assert!(!places.to_string().contains("secret"), "{places}");

    assert_eq!(server.send_as("owner", "DELETE", &format!("{ALL}/digits"), "").await.status, 204);
    assert_eq!(server.send_as("reader", "GET", &format!("{ALL}/digits"), "").await.status, 404);
    assert!(repository.path().join("images.dvc").exists(), "the repository stays");
}

#[tokio::test]
async fn pipelines_show_what_is_stale_and_values_side_by_side() {
    let server = TestServer::open().await;
    let repository = Repository::new();
    let md5 = |bytes: &[u8]| Digest::of_file(digest_of(bytes).md5);
    let (clean, model) = (md5(b"clean"), md5(b"model"));
    repository.write("raw.txt", "raw");
    repository.write("params.yaml", "lr: 0.1\n");
    repository.write(
        "dvc.yaml",
        "stages:\n  prepare:\n    cmd: ./prepare\n    deps: [raw.txt]\n    outs: [clean.txt]\n  train:\n    cmd: ./train\n    deps: [clean.txt]\n    params: [lr]\n    outs: [model.bin]\n    metrics:\n    - metrics.json:\n        cache: false\nplots:\n- curve.csv:\n    x: step\n    y: loss\n",
    );
    repository.write(
        "dvc.lock",
        &format!(
            "schema: '2.0'\nstages:\n  prepare:\n    cmd: ./prepare\n    deps:\n    - path: raw.txt\n      hash: md5\n      md5: {}\n      size: 3\n    outs:\n    - path: clean.txt\n      hash: md5\n      md5: {clean}\n      size: 5\n  train:\n    cmd: ./train\n    deps:\n    - path: clean.txt\n      hash: md5\n      md5: {clean}\n      size: 5\n    params:\n      params.yaml:\n        lr: 0.1\n    outs:\n    - path: metrics.json\n      hash: md5\n      md5: {}\n      size: 18\n    - path: model.bin\n      hash: md5\n      md5: {model}\n      size: 5\n",
            md5(b"raw"),
            md5(b"{\"accuracy\": 0.5}\n"),
        ),
    );
    repository.write("metrics.json", "{\"accuracy\": 0.5}\n");
    repository.write("curve.csv", "step,loss\n1,0.5\n2,0.25\n");
    repository.commit("Run");
    repository.git(&["tag", "v1"]);
    repository.write("raw.txt", "other");
    repository.write("params.yaml", "lr: 0.2\n");
    repository.write("metrics.json", "{\"accuracy\": 0.75}\n");
    repository.write("curve.csv", "step,loss\n1,0.5\n2,0.125\n");
    repository.commit("Edit");
    register(&server, "pipeline", repository.path()).await;

    let current = get(&server, "pipeline/stages?rev=v1").await;
    assert_eq!(
        current["stages"].as_array().unwrap().iter().filter(|s| s["reasons"] != json!([])).count(),
        0,
        "{current}"
    );
    assert_eq!(current["edges"], json!([[0, 1]]));
    let edited = get(&server, "pipeline/stages").await;
    assert_eq!(edited["stages"][0]["reasons"], json!(["'raw.txt' changed"]));
    assert_eq!(edited["stages"][1]["reasons"], json!(["parameters of 'params.yaml' changed: lr"]));

    let values = get(&server, "pipeline/values?revs=v1,HEAD").await;
    assert_eq!(values["metrics"], json!([{"file": "metrics.json", "name": "accuracy", "values": ["0.5", "0.75"]}]));
    assert_eq!(values["params"][0], json!({"file": "params.yaml", "name": "lr", "values": ["0.1", "0.2"]}));
    let plots = get(&server, "pipeline/plots?revs=v1,HEAD").await;
    assert_eq!(plots["plots"][0]["legend"].as_array().unwrap().len(), 2, "{plots}");
    assert!(plots["plots"][0]["light"].as_str().unwrap().starts_with("<svg"));
    let experiments = get(&server, "pipeline/experiments?commits=2").await;
    assert_eq!(experiments["rows"].as_array().unwrap().len(), 2, "{experiments}");
    assert_eq!(experiments["metrics"], json!(["accuracy"]));
}

#[tokio::test]
async fn a_repository_is_registered_by_administrators_and_read_in_its_namespace() {
    let server = TestServer::open().await;
    let repository = Repository::new();
    repository.track(&[("a", b"a")]);
    repository.commit("First");
    let of_team = "/api/v1/data/namespaces/team-a/repositories";
    let body = json!({ "name": "secret", "location": repository.path() }).to_string();
    for role in ["reader", "writer", "runner", "inferrer"] {
        for path in [ALL, of_team] {
            assert_eq!(server.send_as(role, "POST", path, &body).await.status, 403, "{role} {path}");
        }
    }
    assert_eq!(server.send_as("owner", "POST", of_team, &body).await.status, 200);
    assert_eq!(server.send_as("owner", "POST", of_team, &body).await.status, 409, "the name is in use");
    // It is that of its namespace only.
    assert_eq!(json_of(&server.send_as("reader", "GET", ALL, "").await)["repositories"], json!([]));
    for path in [format!("{ALL}/secret"), "/api/v1/data/namespaces/team-b/repositories/secret/datasets".to_owned()] {
        assert_eq!(server.send_as("reader", "GET", &path, "").await.status, 404, "{path}");
    }
    assert_eq!(server.send_as("writer", "DELETE", &format!("{of_team}/secret"), "").await.status, 403);
    assert_eq!(server.send_as("reader", "GET", &format!("{of_team}/secret/datasets"), "").await.status, 200);
    for role in ["no-token", "inferrer", "runner"] {
        let reply = server.send_as(role, "GET", &format!("{of_team}/secret/datasets"), "").await;
        assert!([401, 403].contains(&reply.status.as_u16()), "{role}: {}", reply.status);
    }
}

#[tokio::test]
async fn requests_cannot_leave_the_repository() {
    let server = TestServer::open().await;
    let repository = Repository::new();
    repository.track(&[("a", b"a")]);
    repository.commit("First");
    register(&server, "r", repository.path()).await;
    for path in
        ["../secret", "%2fetc%2fpasswd", "images/../../x", "images%2f..%2f..%2fx", "a%00b", "", "none", "images.dvc"]
    {
        for route in ["versions", "files", "places", "preview", "picture"] {
            let reply = server.send_as("owner", "GET", &format!("{ALL}/r/{route}?path={path}"), "").await;
            assert!(reply.status.is_client_error(), "{route} {path}: {}", reply.status);
        }
    }
    for rev in ["--all", "-p", "HEAD:images.dvc", ":/First", "a..b", "%0a", "", "none", "@%7b-1%7d"] {
        for route in ["datasets?", "preview?path=images/a&", "stages?", "differences?path=images&from=HEAD&"] {
            let name = if route.starts_with("differences") { "to" } else { "rev" };
            let reply = server.send_as("owner", "GET", &format!("{ALL}/r/{route}{name}={rev}"), "").await;
            assert!(reply.status.is_client_error(), "{route} {rev}: {}", reply.status);
        }
        let reply = server.send_as("owner", "GET", &format!("{ALL}/r/values?revs={rev}"), "").await;
        assert!(reply.status.is_client_error(), "values {rev}: {}", reply.status);
    }
    for (name, location) in [
        ("../x", repository.path().to_str().unwrap()),
        ("x", "ext::sh -c 'touch /tmp/x'"),
        ("x", "--upload-pack=x"),
        ("x", "https://me:secret@localhost/x"),
        ("x", "/no/such/folder"),
        ("x", "relative"),
        ("x", server.home.root().to_str().unwrap()),
    ] {
        let body = json!({ "name": name, "location": location }).to_string();
        let reply = server.send_as("owner", "POST", ALL, &body).await;
        assert!(reply.status.is_client_error(), "{location}: {}", reply.status);
        assert!(!String::from_utf8_lossy(&reply.body).contains("secret@"), "{location}");
    }
}

/// What somebody who can write to a registered repository could try.
#[tokio::test]
async fn a_hostile_repository_is_neither_executed_nor_believed() {
    let server = TestServer::open().await;
    let repository = Repository::new();
    repository.track(&[("a", b"a")]);
    repository.commit("First");
    register(&server, "evil", repository.path()).await;
    let trap = repository.path().join("executed");
    let script: PathBuf = repository.path().join("trap.sh");
    std::fs::write(&script, format!("#!/bin/sh\ntouch '{}'\n", trap.display())).unwrap();
    Command::new("chmod").arg("+x").arg(&script).status().unwrap();
    let program = script.to_str().unwrap();
    for (option, value) in [
        ("core.fsmonitor", program),
        ("core.sshCommand", program),
        ("core.pager", program),
        ("log.showSignature", "true"),
        ("gpg.program", program),
        ("diff.external", program),
        ("filter.x.smudge", program),
        ("remote.origin.url", "/no/such/repository"),
        ("remote.origin.uploadpack", program),
        ("remote.origin.promisor", "true"),
        ("extensions.partialClone", "origin"),
    ] {
        repository.git(&["config", option, value]);
    }
    // A signed commit, and a commit whose file is missing, so that a partial clone would fetch it.
    let tree = repository.git(&["rev-parse", "HEAD^{tree}"]);
    let raw = format!(
        "tree {tree}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n x\n -----END PGP SIGNATURE-----\n\nSigned\n"
    );
    std::fs::write(repository.path().join("commit"), raw).unwrap();
    let signed = repository.git(&["hash-object", "-t", "commit", "-w", "commit"]);
    repository.git(&["update-ref", "refs/heads/signed", &signed]);
    let blob = repository.git(&["rev-parse", "HEAD:images.dvc"]);
    for path in
        ["evil", "evil/datasets", "evil/experiments?rev=signed", "evil/versions?path=images&rev=signed", "evil/stages"]
    {
        server.send_as("owner", "GET", &format!("{ALL}/{path}"), "").await;
    }
    std::fs::remove_file(repository.path().join(format!(".git/objects/{}/{}", &blob[..2], &blob[2..]))).unwrap();
    let reply = server.send_as("owner", "GET", &format!("{ALL}/evil/datasets"), "").await;
    assert!(!reply.status.is_success());
    assert!(!trap.exists(), "a program of the repository's configuration was executed");
}

#[tokio::test]
async fn an_object_with_another_content_is_not_shown() {
    let server = TestServer::open().await;
    let repository = Repository::new();
    repository.track(&[("a", b"a"), ("b", b"b"), ("c", b"c")]);
    repository.commit("First");
    register(&server, "r", repository.path()).await;
    let outside = repository.path().join("outside");
    std::fs::write(&outside, "root:x:0:0").unwrap();
    let object = |bytes: &[u8]| repository.cache.path(&Digest::of_file(digest_of(bytes).md5));
    std::fs::remove_file(object(b"a")).unwrap();
    std::os::unix::fs::symlink(&outside, object(b"a")).unwrap();
    std::fs::remove_file(object(b"b")).unwrap();
    std::fs::copy(&outside, object(b"b")).unwrap();
    std::fs::remove_file(object(b"c")).unwrap();
    Command::new("mkfifo").arg(object(b"c")).status().unwrap();
    for file in ["a", "b", "c"] {
        let reply = server.send_as("owner", "GET", &format!("{ALL}/r/preview?path=images/{file}"), "").await;
        assert!(reply.status.is_client_error() || reply.status == 500, "{file}: {}", reply.status);
        assert!(!String::from_utf8_lossy(&reply.body).contains("root:x"), "{file}");
    }
}

#[tokio::test]
async fn limits_end_the_reading_of_huge_repositories() {
    let server = TestServer::open().await;
    let repository = Repository::new();
    // A few kilobytes that stand for 10^9 files.
    repository.write("x", "x");
    let mut id = repository.git(&["hash-object", "-w", "x"]);
    for level in 0..9 {
        let kind = if level == 0 { "100644 blob" } else { "040000 tree" };
        let lines: String = (0..10).map(|i| format!("{kind} {id}\t{i}\n")).collect();
        std::fs::write(repository.path().join("tree"), lines).unwrap();
        let input = std::fs::File::open(repository.path().join("tree")).unwrap();
        let made = Command::new("git").arg("-C").arg(repository.path()).arg("mktree").stdin(input).output().unwrap();
        id = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    }
    let bomb = repository.git(&["commit-tree", &id, "-m", "Many files"]);
    repository.track(&[("a", b"a")]);
    // A manifest that is larger than what the server reads.
    let large = vec![b' '; (64 << 20) + 1];
    let digest = Digest { md5: digest_of(&large).md5, is_dir: true };
    repository.cache.put(&digest, &large).unwrap();
    repository.write("large.dvc", &format!("outs:\n- md5: {digest}\n  path: large\n  hash: md5\n"));
    repository.commit("First");
    repository.git(&["branch", "bomb", &bomb]);
    register(&server, "r", repository.path()).await;
    for path in ["datasets?rev=bomb", "stages?rev=bomb", "files?path=large", "differences?path=large&from=main"] {
        let reply = server.send_as("owner", "GET", &format!("{ALL}/r/{path}"), "").await;
        assert_eq!(reply.status, 422, "{path}: {}", String::from_utf8_lossy(&reply.body));
        assert_eq!(json_of(&reply)["code"], "data.limit", "{path}");
    }
    assert_eq!(server.send_as("owner", "GET", &format!("{ALL}/r/datasets"), "").await.status, 200);
}

/// Who commits to a repository chooses neither the cache nor the remote that the server reads on its machine.
#[tokio::test]
async fn links_of_a_repository_do_not_lead_to_data_of_others() {
    let server = TestServer::open().await;
    let (repository, other) = (Repository::new(), Repository::new());
    let digest = other.put(b"theirs");
    repository.write("a.dvc", &format!("outs:\n- md5: {digest}\n  hash: md5\n  path: a\n"));
    let remote = |url: &str| {
        repository.write(".dvc/config", &format!("[core]\n    remote = r\n['remote \"r\"']\n    url = {url}\n"));
    };
    remote("../store/cache");
    std::os::unix::fs::symlink(other.path().join(".dvc"), repository.path().join("store")).unwrap();
    repository.commit("With a link");
    register(&server, "linked", repository.path()).await;
    let preview = || server.send_as("reader", "GET", "/api/v1/data/repositories/linked/preview?path=a", "");
    assert!(preview().await.status.is_client_error());
    // A link that is not in Git is the arrangement of who owns the work tree.
    repository.write(".gitignore", "/.dvc/cache\n/store\n");
    repository.git(&["rm", "--quiet", "--cached", "store"]);
    repository.commit("Without it");
    assert_eq!(json_of(&preview().await)["text"], "theirs");
    repository.write(".dvc/config", "[cache]\n    dir = ../link/cache\n");
    std::os::unix::fs::symlink(other.path().join(".dvc"), repository.path().join("link")).unwrap();
    repository.commit("With a linked cache");
    assert!(preview().await.status.is_client_error());
}
