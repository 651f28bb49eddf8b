//! Custom resources from `spec.system`: package repositories, kernel modules, users, files and mounts.

use super::{command, file, id_part};
use crate::ClusterError;
use crate::resource::{Layer, PackageManager, Resource, ResourceKind, Text};
use crate::shell::quote;
use crate::spec::secret::TrustedCommands;
use crate::spec::system::{Mount, OwnFile, Repository, User};
use crate::spec::{Cluster, Machine, Role};

const LAYER: Layer = Layer::System;

/// Package repositories. They must come before the packages.
pub(super) fn repositories(cluster: &Cluster) -> Result<Vec<Resource>, ClusterError> {
    let resources = cluster
        .spec
        .system
        .repositories
        .iter()
        .map(|r| repository(r, &cluster.trusted))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(resources.into_iter().flatten().collect())
}

/// All custom resources except repositories.
pub(super) fn resources(cluster: &Cluster, machine: &Machine) -> Result<Vec<Resource>, ClusterError> {
    let system = &cluster.spec.system;
    let applies = |roles: &std::collections::BTreeSet<Role>| roles.is_empty() || !roles.is_disjoint(&machine.roles);
    let mut out = modules(&system.modules);
    out.extend(system.users.iter().flat_map(user));
    out.extend(system.mounts.iter().filter(|m| applies(&m.roles)).flat_map(mount));
    for file in system.files.iter().filter(|f| applies(&f.roles)) {
        out.push(custom_file(cluster, machine, file)?);
    }
    Ok(out)
}

/// A repository in deb822 format and its key. `Signed-By` restricts the repository to this key.
///
/// Source: sources.list(5), "DEB822-STYLE FORMAT".
///
/// A repository without suites is one of dnf (yum.conf(5)).
fn repository(repository: &Repository, trusted: &TrustedCommands) -> Result<[Resource; 2], ClusterError> {
    let Repository { name, uri, suites, components, key } = repository;
    let [key_id, source_id] = [format!("repository-key-{name}"), format!("repository-{name}")].map(|n| id_part(&n));
    if suites.is_empty() {
        let keyring = format!("/etc/pki/rpm-gpg/slipway-{name}");
        let text = format!("[{name}]\nname={name}\nbaseurl={uri}\nenabled=1\ngpgcheck=1\ngpgkey=file://{keyring}\n");
        let resources = [
            file(LAYER, &key_id, &keyring, key.read(trusted)? + "\n"),
            file(LAYER, &source_id, &format!("/etc/yum.repos.d/{name}.repo"), text)
                .needs(&[&format!("{}/{key_id}", LAYER.name())]),
        ];
        return Ok(resources.map(|r| r.only_with(PackageManager::Dnf)));
    }
    let keyring = format!("/etc/apt/keyrings/{name}.asc");
    let mut source = format!("Types: deb\nURIs: {uri}\nSuites: {}\n", suites.join(" "));
    if !components.is_empty() {
        source += &format!("Components: {}\n", components.join(" "));
    }
    source += &format!("Signed-By: {keyring}\n");
    let update = "apt-get -qq -o DPkg::Lock::Timeout=300 -o APT::Update::Error-Mode=any update";
    Ok([
        file(LAYER, &key_id, &keyring, key.read(trusted)? + "\n"),
        file(LAYER, &source_id, &format!("/etc/apt/sources.list.d/{name}.sources"), source)
            .needs(&[&format!("{}/{key_id}", LAYER.name())])
            .then(update),
    ]
    .map(|r| r.only_with(PackageManager::Apt)))
}

/// Kernel modules: a file that is read at boot, and a command that loads them now.
fn modules(names: &[String]) -> Vec<Resource> {
    if names.is_empty() {
        return Vec::new();
    }
    // The kernel lists modules with underscores, even if the file name has dashes.
    let check = names.iter().map(|n| format!("[ -d /sys/module/{} ]", n.replace('-', "_"))).collect::<Vec<_>>();
    let all = names.join(" ");
    vec![
        file(LAYER, "modules", "/etc/modules-load.d/slipway.conf", names.join("\n") + "\n"),
        command(
            LAYER,
            "modules-now",
            &check.join(" && "),
            &format!("modprobe -a {all}"),
            &format!("modules not loaded, at least one of: {all}"),
        ),
    ]
}

/// A user, its groups and its SSH keys.
fn user(user: &User) -> Vec<Resource> {
    let User { name, groups, authorized_keys } = user;
    let exists = ResourceKind::Command {
        check: format!("getent passwd {name}"),
        run: format!("useradd --create-home --shell /bin/bash {name}"),
        undo: Some(format!("userdel {name}")),
        missing: format!("user {name}"),
    };
    let account = Resource::new(LAYER, &id_part(&format!("user-{name}")), exists);
    let id = account.id.clone();
    let mut out = vec![account];
    if !groups.is_empty() {
        let is_in = |group: &String| format!("case \" $(id -Gn {name}) \" in *\" {group} \"*) ;; *) false;; esac");
        let join = |group: &String| format!("groupadd --force --system {group} && usermod -aG {group} {name}");
        let for_each = |script: &dyn Fn(&String) -> String| groups.iter().map(script).collect::<Vec<_>>().join(" && ");
        let missing = format!("user {name} is not in all of these groups: {}", groups.join(" "));
        let groups = command(LAYER, &id_part(&format!("groups-{name}")), &for_each(&is_in), &for_each(&join), &missing);
        out.push(groups.needs(&[&id]));
    }
    if !authorized_keys.is_empty() {
        let home = format!("f=$(getent passwd {name} | cut -d: -f6)/.ssh/authorized_keys");
        let has = |key: &String| format!("grep -qxF {} \"$f\"", quote(key));
        let check = authorized_keys.iter().map(has).collect::<Vec<_>>().join(" && ");
        let add = |key: &String| format!("{{ {} || printf '%s\\n' {} >>\"$f\"; }}", has(key), quote(key));
        let adds = authorized_keys.iter().map(add).collect::<Vec<_>>().join(" && ");
        // The script runs as the user, because the user may have replaced the file with a link to a file that only root may write.
        let script = format!(
            "umask 077; {home}; mkdir -p \"${{f%/*}}\" && touch \"$f\" && {{ [ -z \"$(tail -c1 \"$f\")\" ] || echo >>\"$f\"; }} && {adds}"
        );
        let run = format!("runuser -u {name} -- sh -c {}", quote(&script));
        let missing = format!("SSH keys of user {name}");
        let check = format!("{home}; {check}");
        out.push(command(LAYER, &id_part(&format!("keys-{name}")), &check, &run, &missing).needs(&[&id]));
    }
    out
}

/// Converts a path to a systemd unit name without its suffix. Source: systemd.unit(5), "String Escaping for Inclusion in Unit Names".
fn unit_name(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let mut out = String::new();
    for (at, byte) in parts.join("/").bytes().enumerate() {
        match byte {
            b'/' => out.push('-'),
            b'.' if at == 0 => out += "\\x2e",
            b if b.is_ascii_alphanumeric() || b":_.".contains(&b) => out.push(char::from(b)),
            b => out += &format!("\\x{b:02x}"),
        }
    }
    out
}

/// A mount unit, and the service that enables and starts it.
fn mount(mount: &Mount) -> [Resource; 2] {
    let Mount { what, path, kind, options, .. } = mount;
    let unit = format!("{}.mount", unit_name(path));
    // A percent sign begins a systemd specifier, so it is doubled.
    let escape = |text: &str| text.replace('%', "%%");
    let mut text = format!(
        "[Unit]\nDescription={} (slipway)\n\n[Mount]\nWhat={}\nWhere={}\nType={kind}\n",
        escape(path),
        escape(what),
        escape(path)
    );
    if !options.is_empty() {
        text += &format!("Options={}\n", escape(&options.join(",")));
    }
    text += "\n[Install]\nWantedBy=multi-user.target\n";
    let name = id_part(&format!("mount{path}"));
    let quoted = quote(&unit);
    let remount = format!(
        "systemctl daemon-reload && {{ ! systemctl is-active --quiet {quoted} || systemctl restart {quoted}; }}"
    );
    let unit_file = file(LAYER, &format!("{name}-unit"), &format!("/etc/systemd/system/{unit}"), text).then(remount);
    let service = Resource::new(LAYER, &name, ResourceKind::Service { name: unit }).needs(&[&unit_file.id]);
    [unit_file.effect(format!("remounts {path}")), service]
}

/// A file of `spec.system.files`: its whole content, or edits of its parts.
fn custom_file(cluster: &Cluster, machine: &Machine, own: &OwnFile) -> Result<Resource, ClusterError> {
    let path = own.path.clone();
    let fill_template = |template: &String| {
        let values = [
            ("{{machine}}", machine.name.as_str()),
            ("{{address}}", &machine.address),
            ("{{internalAddress}}", machine.internal()),
            ("{{cluster}}", &cluster.metadata.name),
        ];
        values.iter().fold(template.clone(), |text, (name, value)| text.replace(name, value))
    };
    let secret = own.secret.as_ref().map(|source| source.read(&cluster.trusted)).transpose()?.map(|s| s + "\n");
    let content = own.content.clone().or_else(|| own.template.as_ref().map(fill_template)).or(secret);
    let kind = match content {
        Some(text) => {
            let secret = own.secret.is_some();
            let mode = own.mode.clone().unwrap_or_else(|| if secret { "0600" } else { "0644" }.into());
            ResourceKind::File { path, content: Text { text, secret }, mode }
        }
        None => {
            let edits =
                own.parts().map_err(|reason| ClusterError::Spec { file: "spec.system.files".into(), reason })?;
            ResourceKind::Edit { path, edits }
        }
    };
    let mut resource = Resource::new(LAYER, &id_part(&format!("file{}", own.path)), kind);
    if let Some(then) = &own.then {
        resource = resource.then(then.clone()).effect(format!("runs: {then}"));
    }
    Ok(resource)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Edit;
    use crate::spec::tests::FILE;

    const OWN: &str = r#"kubernetes:
  system:
    repositories: [{name: tools, uri: 'https://example.org/deb', suites: [stable], components: [main], key: {command: echo KEY}}]
    packages: [jq=1.6-2.1, vim]
    modules: [nvme-tcp]
    users: [{name: ada, groups: [microk8s], authorizedKeys: ['ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA ada']}]
    mounts: [{what: /dev/disk/by-label/a%b, where: /srv/model-data, type: ext4, options: [noatime], roles: [gpu]}]
    files:
      - {path: /etc/motd, template: "{{machine}} of {{cluster}} at {{address}}\n"}
      - {path: /etc/token, secret: {command: echo hush}}
      - {path: /etc/x.toml, toml: {a."b.c".d: [1, "two"]}, then: systemctl restart x}
      - {path: /etc/x.yaml, yaml: {a.b: {c: null}}, roles: [gpu]}
  kubernetes:"#;

    #[test]
    fn custom_files_users_and_mounts_become_resources() {
        let mut cluster =
            Cluster::parse(&FILE.replacen("kubernetes:", OWN.trim_start_matches("kubernetes:\n  "), 1)).unwrap();
        cluster.trust_commands();
        let desired = |n: usize| super::super::desired_state(&cluster, &cluster.spec.machines[n]).unwrap();
        let (first, gpu) = (desired(0), desired(2));
        first.validate().unwrap();
        gpu.validate().unwrap();
        let find = |id: &str| gpu.resources.iter().find(|r| r.id == id).unwrap_or_else(|| panic!("{id}")).what.clone();
        assert!(!first.resources.iter().any(|r| r.id.contains("model-data") || r.id.contains("x.yaml")));
        let ResourceKind::File { path, content, .. } = find("system/mount.srv.model-data-unit") else { panic!() };
        assert_eq!(path, "/etc/systemd/system/srv-model\\x2ddata.mount");
        assert!(content.text.contains("What=/dev/disk/by-label/a%%b\n") && content.text.contains("Options=noatime\n"));
        let ResourceKind::File { content, .. } = find("system/file.etc.motd") else { panic!() };
        assert!(content.text.contains(" of lab at 10."), "{}", content.text);
        let ResourceKind::File { content, mode, .. } = find("system/file.etc.token") else { panic!() };
        assert!(content.secret && content.text == "hush\n" && mode == "0600");
        let ResourceKind::Edit { edits, .. } = find("system/file.etc.x.toml") else { panic!() };
        let path = ["a", "b.c", "d"].map(String::from).to_vec();
        assert_eq!(edits, [Edit::Toml { path, value: "[1, \"two\"]".into() }]);
        let held = ResourceKind::Package { name: "jq".into(), version: Some("1.6-2.1".into()), hold: true };
        assert_eq!(find("host-tools/package-jq"), held);
        // A repository comes before the packages.
        let position = |id: &str| gpu.resources.iter().position(|r| r.id == id).unwrap();
        assert!(position("system/repository-tools") < position("host-tools/package-vim"));
    }

    #[test]
    fn invalid_custom_resources_are_rejected() {
        let error_of = |from: &str, to: &str| {
            let own = OWN.trim_start_matches("kubernetes:\n  ");
            assert!(own.contains(from), "{from}");
            Cluster::parse(&FILE.replacen("kubernetes:", &own.replacen(from, to, 1), 1)).unwrap_err()
        };
        assert!(error_of("path: /etc/motd", "path: /etc/../motd").contains("absolute"));
        assert!(error_of("secret: {command", "content: x, secret: {command").contains("one of content"));
        assert!(error_of("a.\"b.c\".d", "a..b").contains("not a valid key"));
        assert!(error_of("roles: [gpu]}\n  kub", "mode: '0600'}\n  kub").contains("keeps its mode"));
        assert!(error_of("name: ada", "name: 'a;b'").contains("not a valid name"));
        assert!(error_of("type: ext4", "type: 'a b'").contains("type and options"));
        assert!(error_of("ssh-ed25519 AAAA", "AAAA").contains("begins with its type"));
    }

    #[test]
    fn unit_names_are_escaped_like_systemd() {
        assert_eq!(unit_name("/data/models/"), "data-models");
        assert_eq!(unit_name("/.snap/a-b c"), "\\x2esnap-a\\x2db\\x20c");
    }
}
