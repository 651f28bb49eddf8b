//! An HTTP proxy: for programs that users run, for apt and dnf, for snapd and for the container runtime.
//!
//! Source: MicroK8s, "Installing behind a proxy"; snapd, "System options" (`proxy.http`); apt-transport-http(1); dnf.conf(5); K3s, "Configuring an HTTP
//! proxy".

use super::{absent, command, edit, file};
use crate::resource::{Edit, Layer, PackageManager, Resource, ResourceKind};
use crate::shell::quote;
use crate::spec::Cluster;

const APT: &str = "/etc/apt/apt.conf.d/95slipway-proxy";
const ENVIRONMENT: &str = "/etc/environment";
/// File that exists while snapd has slipway's proxy, so that a proxy that somebody else set is never removed.
const SNAPD_MARK: &str = "/var/lib/slipway/snapd-proxy";
/// Name of the block in files with other content.
const BLOCK: &str = "slipway proxy";

/// The variables, in upper and in lower case because programs differ in which they read; empty without a proxy.
fn variables(cluster: &Cluster) -> Vec<(String, String)> {
    let Some(proxy) = &cluster.spec.network.proxy else { return Vec::new() };
    let no_proxy = Some(cluster.no_proxy().join(","));
    let all = [("http_proxy", proxy.http.clone()), ("https_proxy", proxy.https.clone()), ("no_proxy", no_proxy)];
    let set = all.into_iter().filter_map(|(name, value)| Some((name, value?)));
    set.flat_map(|(name, value)| [(name.to_ascii_uppercase(), value.clone()), (name.to_owned(), value)]).collect()
}

/// The variables as lines of an environment file.
pub(super) fn environment(cluster: &Cluster) -> String {
    variables(cluster).into_iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}

/// The variables as a prefix of a shell command.
pub(super) fn exports(cluster: &Cluster) -> String {
    let words: Vec<String> =
        variables(cluster).into_iter().map(|(name, value)| format!("{name}={}", quote(&value))).collect();
    if words.is_empty() { String::new() } else { format!("export {}; ", words.join(" ")) }
}

/// The proxy of the operating system. It comes before all packages.
pub(super) fn system(cluster: &Cluster) -> Vec<Resource> {
    let layer = Layer::System;
    let block = Edit::Block { name: BLOCK.into(), text: environment(cluster) };
    let apt = match &cluster.spec.network.proxy {
        None => absent(layer, "proxy-apt", APT),
        Some(proxy) => {
            let mut text = String::new();
            for (scheme, url) in [("http", &proxy.http), ("https", &proxy.https)] {
                let Some(url) = url else { continue };
                text += &format!("Acquire::{scheme}::Proxy \"{url}\";\n");
                // apt has exceptions by host only, not by network or domain.
                let is_host = |entry: &&String| !entry.starts_with(['.', '*']) && !entry.contains(['/', ':']);
                for host in proxy.no_proxy.iter().filter(is_host) {
                    text += &format!("Acquire::{scheme}::Proxy::{host} \"DIRECT\";\n");
                }
            }
            file(layer, "proxy-apt", APT, text)
        }
    };
    // dnf takes one proxy for all repositories; a repository that is reached without it has `proxy=` of its own.
    let url = cluster.spec.network.proxy.as_ref().and_then(|proxy| proxy.https.as_ref().or(proxy.http.as_ref()));
    let dnf = Edit::Block { name: BLOCK.into(), text: url.map(|url| format!("proxy={url}")).unwrap_or_default() };
    vec![
        edit(layer, "proxy-environment", ENVIRONMENT, block),
        apt.only_with(PackageManager::Apt),
        edit(layer, "proxy-dnf", "/etc/dnf/dnf.conf", dnf).only_with(PackageManager::Dnf),
    ]
}

/// The proxy with which snapd downloads snaps. It needs snapd.
pub(super) fn snapd(cluster: &Cluster) -> Resource {
    let settings = match &cluster.spec.network.proxy {
        None => Vec::new(),
        Some(proxy) => [("proxy.http", &proxy.http), ("proxy.https", &proxy.https)]
            .into_iter()
            .filter_map(|(key, url)| Some((key, url.clone()?)))
            .collect(),
    };
    let (check, run) = if settings.is_empty() {
        (format!("[ ! -e {SNAPD_MARK} ]"), format!("snap unset system proxy.http proxy.https && rm -f {SNAPD_MARK}"))
    } else {
        let is = |(key, url): &(&str, String)| format!("[ \"$(snap get system {key} 2>/dev/null)\" = {} ]", quote(url));
        let set: Vec<String> = settings.iter().map(|(key, url)| quote(&format!("{key}={url}"))).collect();
        let check = settings.iter().map(is).collect::<Vec<_>>().join(" && ");
        let mark = format!("mkdir -p /var/lib/slipway && touch {SNAPD_MARK}");
        (check, format!("{mark} && snap set system {}", set.join(" ")))
    };
    let missing = if settings.is_empty() {
        "snapd's proxy is removed".into()
    } else {
        format!("snapd's proxy {}", settings[0].1)
    };
    let mut out = command(Layer::Kubernetes, "proxy-snapd", &check, &run, &missing).needs(&["kubernetes/snapd"]);
    if let (ResourceKind::Command { undo, .. }, false) = (&mut out.what, settings.is_empty()) {
        *undo = Some(format!("snap unset system proxy.http proxy.https; rm -f {SNAPD_MARK}"));
    }
    out
}

/// The proxy of a container runtime that reads its environment from the file at `path`, which has other content too.
pub(super) fn runtime(cluster: &Cluster, path: &str) -> Resource {
    let block = Edit::Block { name: BLOCK.into(), text: environment(cluster) };
    edit(Layer::Kubernetes, "proxy-containerd", path, block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::edit::apply_edit;
    use crate::layers::desired_state;
    use crate::spec::tests::FILE;

    fn find(cluster: &Cluster, id: &str) -> ResourceKind {
        let desired = desired_state(cluster, &cluster.spec.machines[0]).unwrap();
        desired.resources.into_iter().find(|r| r.id == id).unwrap_or_else(|| panic!("{id}")).what
    }

    #[test]
    fn proxy_reaches_the_system_apt_snapd_and_containerd_and_is_removed_again() {
        let without = Cluster::parse(FILE).unwrap();
        let proxy = "spec:\n  network: {proxy: {http: 'http://proxy:3128', https: 'http://proxy:3129', noProxy: [mirror.example, .example.com]}}\n";
        let with = Cluster::parse(&FILE.replace("spec:\n", proxy)).unwrap();
        for (id, path) in [
            ("system/proxy-environment", ENVIRONMENT),
            ("kubernetes/proxy-containerd", "/var/snap/microk8s/current/args/containerd-env"),
        ] {
            let (ResourceKind::Edit { path: on, edits }, ResourceKind::Edit { edits: none, .. }) =
                (find(&with, id), find(&without, id))
            else {
                panic!()
            };
            let before = "PATH=/bin\n";
            let text = apply_edit(before, &edits[0]).unwrap();
            assert!(
                on == path && text.contains("\nHTTPS_PROXY=http://proxy:3129\nhttps_proxy=http://proxy:3129\n"),
                "{text}"
            );
            assert!(text.contains("10.152.183.0/24,cp1,10.0.0.1,cp2,") && text.contains(",.example.com\n"), "{text}");
            assert_eq!(apply_edit(&text, &none[0]).unwrap(), before);
            assert_eq!(apply_edit(before, &none[0]).unwrap(), before);
        }
        let ResourceKind::File { content, .. } = find(&with, "system/proxy-apt") else { panic!() };
        let expected = "Acquire::http::Proxy \"http://proxy:3128\";\nAcquire::http::Proxy::mirror.example \"DIRECT\";\nAcquire::https::Proxy \"http://proxy:3129\";\nAcquire::https::Proxy::mirror.example \"DIRECT\";\n";
        assert_eq!(content.text, expected);
        let ResourceKind::Command { check, .. } = find(&without, "system/proxy-apt") else { panic!() };
        assert_eq!(check, format!("[ ! -e '{APT}' ]"));
        let ResourceKind::Command { run, .. } = find(&with, "kubernetes/proxy-snapd") else { panic!() };
        assert!(
            run.ends_with("snap set system 'proxy.http=http://proxy:3128' 'proxy.https=http://proxy:3129'"),
            "{run}"
        );
    }
}
