//! What people want of their machines themselves: sources of packages, modules, users, files, file systems.

use super::{command, file, named};
use crate::ClusterError;
use crate::resource::{Layer, Resource, Text, What};
use crate::shell::quote;
use crate::spec::secret::TrustedCommands;
use crate::spec::system::{Mount, OwnFile, Repository, User};
use crate::spec::{Cluster, Machine, Role};

const LAYER: Layer = Layer::System;

/// Sources of packages; they come before packages.
pub(super) fn repositories(cluster: &Cluster) -> Result<Vec<Resource>, ClusterError> {
    let each = cluster
        .spec
        .system
        .repositories
        .iter()
        .map(|r| repository(r, &cluster.trusted))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(each.into_iter().flatten().collect())
}

/// All others.
pub(super) fn resources(cluster: &Cluster, machine: &Machine) -> Result<Vec<Resource>, ClusterError> {
    let system = &cluster.spec.system;
    let here = |roles: &std::collections::BTreeSet<Role>| roles.is_empty() || !roles.is_disjoint(&machine.roles);
    let mut out = modules(&system.modules);
    out.extend(system.users.iter().flat_map(user));
    out.extend(system.mounts.iter().filter(|m| here(&m.roles)).flat_map(mount));
    for own in system.files.iter().filter(|f| here(&f.roles)) {
        out.push(own_file(cluster, machine, own)?);
    }
    Ok(out)
}

/// Source: sources.list(5), "DEB822-STYLE FORMAT"; `Signed-By` holds a source to its own key.
fn repository(repository: &Repository, trusted: &TrustedCommands) -> Result<[Resource; 2], ClusterError> {
    let Repository { name, uri, suites, components, key } = repository;
    let ring = format!("/etc/apt/keyrings/{name}.asc");
    let mut source = format!("Types: deb\nURIs: {uri}\nSuites: {}\n", suites.join(" "));
    if !components.is_empty() {
        source += &format!("Components: {}\n", components.join(" "));
    }
    source += &format!("Signed-By: {ring}\n");
    let [signed, listed] = [format!("repository-key-{name}"), format!("repository-{name}")].map(|n| named(&n));
    let update = "apt-get -qq -o DPkg::Lock::Timeout=300 -o APT::Update::Error-Mode=any update";
    Ok([
        file(LAYER, &signed, &ring, key.read(trusted)? + "\n"),
        file(LAYER, &listed, &format!("/etc/apt/sources.list.d/{name}.sources"), source)
            .needs(&[&format!("{}/{signed}", LAYER.name())])
            .then(update),
    ])
}

fn modules(names: &[String]) -> Vec<Resource> {
    if names.is_empty() {
        return Vec::new();
    }
    // The kernel writes names with underscores.
    let check = names.iter().map(|n| format!("[ -d /sys/module/{} ]", n.replace('-', "_"))).collect::<Vec<_>>();
    let all = names.join(" ");
    vec![
        file(LAYER, "modules", "/etc/modules-load.d/slipway.conf", names.join("\n") + "\n"),
        command(
            LAYER,
            "modules-now",
            &check.join(" && "),
            &format!("modprobe -a {all}"),
            &format!("not all of these modules are loaded: {all}"),
        ),
    ]
}

fn user(user: &User) -> Vec<Resource> {
    let User { name, groups, authorized_keys } = user;
    let there = What::Command {
        check: format!("getent passwd {name}"),
        run: format!("useradd --create-home --shell /bin/bash {name}"),
        undo: Some(format!("userdel {name}")),
        missing: format!("user {name}"),
    };
    let there = Resource::new(LAYER, &named(&format!("user-{name}")), there);
    let id = there.id.clone();
    let mut out = vec![there];
    if !groups.is_empty() {
        let is_in = |group: &String| format!("case \" $(id -Gn {name}) \" in *\" {group} \"*) ;; *) false;; esac");
        let join = |group: &String| format!("groupadd --force --system {group} && usermod -aG {group} {name}");
        let each = |one: &dyn Fn(&String) -> String| groups.iter().map(one).collect::<Vec<_>>().join(" && ");
        let missing = format!("user {name} is not in all of these groups: {}", groups.join(" "));
        let groups = command(LAYER, &named(&format!("groups-{name}")), &each(&is_in), &each(&join), &missing);
        out.push(groups.needs(&[&id]));
    }
    if !authorized_keys.is_empty() {
        let home = format!("f=$(getent passwd {name} | cut -d: -f6)/.ssh/authorized_keys");
        let has = |key: &String| format!("grep -qxF {} \"$f\"", quote(key));
        let check = authorized_keys.iter().map(has).collect::<Vec<_>>().join(" && ");
        let add = |key: &String| format!("{{ {} || printf '%s\\n' {} >>\"$f\"; }}", has(key), quote(key));
        let adds = authorized_keys.iter().map(add).collect::<Vec<_>>().join(" && ");
        // As the user, who could have put a link there to a file that only root may write.
        let script = format!(
            "umask 077; {home}; mkdir -p \"${{f%/*}}\" && touch \"$f\" && {{ [ -z \"$(tail -c1 \"$f\")\" ] || echo >>\"$f\"; }} && {adds}"
        );
        let run = format!("runuser -u {name} -- sh -c {}", quote(&script));
        let missing = format!("keys that user {name} logs in with");
        let check = format!("{home}; {check}");
        out.push(command(LAYER, &named(&format!("keys-{name}")), &check, &run, &missing).needs(&[&id]));
    }
    out
}

/// A path as the name of a unit. Source: systemd.unit(5), "String Escaping for Inclusion in Unit Names".
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

fn mount(mount: &Mount) -> [Resource; 2] {
    let Mount { what, path, kind, options, .. } = mount;
    let unit = format!("{}.mount", unit_name(path));
    // A percent sign begins a specifier of systemd's.
    let plain = |text: &str| text.replace('%', "%%");
    let mut text = format!(
        "[Unit]\nDescription={} (slipway)\n\n[Mount]\nWhat={}\nWhere={}\nType={kind}\n",
        plain(path),
        plain(what),
        plain(path)
    );
    if !options.is_empty() {
        text += &format!("Options={}\n", plain(&options.join(",")));
    }
    text += "\n[Install]\nWantedBy=multi-user.target\n";
    let name = named(&format!("mount{path}"));
    let quoted = quote(&unit);
    let anew = format!(
        "systemctl daemon-reload && {{ ! systemctl is-active --quiet {quoted} || systemctl restart {quoted}; }}"
    );
    let listed = file(LAYER, &format!("{name}-unit"), &format!("/etc/systemd/system/{unit}"), text).then(anew);
    let mounted = Resource::new(LAYER, &name, What::Service { name: unit }).needs(&[&listed.id]);
    [listed.effect(format!("mounts {path} anew")), mounted]
}

fn own_file(cluster: &Cluster, machine: &Machine, own: &OwnFile) -> Result<Resource, ClusterError> {
    let path = own.path.clone();
    let filled = |template: &String| {
        let values = [
            ("{{machine}}", machine.name.as_str()),
            ("{{address}}", &machine.address),
            ("{{internalAddress}}", machine.internal()),
            ("{{cluster}}", &cluster.metadata.name),
        ];
        values.iter().fold(template.clone(), |text, (name, value)| text.replace(name, value))
    };
    let secret = own.secret.as_ref().map(|source| source.read(&cluster.trusted)).transpose()?.map(|s| s + "\n");
    let whole = own.content.clone().or_else(|| own.template.as_ref().map(filled)).or(secret);
    let what = match whole {
        Some(text) => {
            let secret = own.secret.is_some();
            let mode = own.mode.clone().unwrap_or_else(|| if secret { "0600" } else { "0644" }.into());
            What::File { path, content: Text { text, secret }, mode }
        }
        None => {
            let edits =
                own.parts().map_err(|reason| ClusterError::Spec { file: "spec.system.files".into(), reason })?;
            What::Edit { path, edits }
        }
    };
    let mut resource = Resource::new(LAYER, &named(&format!("file{}", own.path)), what);
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
    users: [{name: ada, groups: [microk8s], authorizedKeys: ['ssh-ed25519 AAAA ada']}]
    mounts: [{what: /dev/disk/by-label/a%b, where: /srv/model-data, type: ext4, options: [noatime], roles: [gpu]}]
    files:
      - {path: /etc/motd, template: "{{machine}} of {{cluster}} at {{address}}\n"}
      - {path: /etc/token, secret: {command: echo hush}}
      - {path: /etc/x.toml, toml: {a."b.c".d: [1, "two"]}, then: systemctl restart x}
      - {path: /etc/x.yaml, yaml: {a.b: {c: null}}, roles: [gpu]}
  kubernetes:"#;

    #[test]
    fn what_people_want_themselves_becomes_resources_of_their_machines() {
        let mut cluster =
            Cluster::parse(&FILE.replacen("kubernetes:", OWN.trim_start_matches("kubernetes:\n  "), 1)).unwrap();
        cluster.trust_commands();
        let of = |n: usize| super::super::wanted(&cluster, &cluster.spec.machines[n]).unwrap();
        let (first, gpu) = (of(0), of(2));
        first.validate().unwrap();
        gpu.validate().unwrap();
        let find = |id: &str| gpu.resources.iter().find(|r| r.id == id).unwrap_or_else(|| panic!("{id}")).what.clone();
        assert!(!first.resources.iter().any(|r| r.id.contains("model-data") || r.id.contains("x.yaml")));
        let What::File { path, content, .. } = find("system/mount.srv.model-data-unit") else { panic!() };
        assert_eq!(path, "/etc/systemd/system/srv-model\\x2ddata.mount");
        assert!(content.text.contains("What=/dev/disk/by-label/a%%b\n") && content.text.contains("Options=noatime\n"));
        let What::File { content, .. } = find("system/file.etc.motd") else { panic!() };
        assert!(content.text.contains(" of lab at 10."), "{}", content.text);
        let What::File { content, mode, .. } = find("system/file.etc.token") else { panic!() };
        assert!(content.secret && content.text == "hush\n" && mode == "0600");
        let What::Edit { edits, .. } = find("system/file.etc.x.toml") else { panic!() };
        let path = ["a", "b.c", "d"].map(String::from).to_vec();
        assert_eq!(edits, [Edit::Toml { path, value: "[1, \"two\"]".into() }]);
        let held = What::Package { name: "jq".into(), version: Some("1.6-2.1".into()), hold: true };
        assert_eq!(find("host-tools/package-jq"), held);
        // A source comes before what is taken from it.
        let at = |id: &str| gpu.resources.iter().position(|r| r.id == id).unwrap();
        assert!(at("system/repository-tools") < at("host-tools/package-vim"));
    }

    #[test]
    fn what_is_no_path_or_both_whole_and_part_is_refused() {
        let wrong = |from: &str, to: &str| {
            let own = OWN.trim_start_matches("kubernetes:\n  ");
            assert!(own.contains(from), "{from}");
            Cluster::parse(&FILE.replacen("kubernetes:", &own.replacen(from, to, 1), 1)).unwrap_err()
        };
        assert!(wrong("path: /etc/motd", "path: /etc/../motd").contains("no path"));
        assert!(wrong("secret: {command", "content: x, secret: {command").contains("one of content"));
        assert!(wrong("a.\"b.c\".d", "a..b").contains("no key"));
        assert!(wrong("roles: [gpu]}\n  kub", "mode: '0600'}\n  kub").contains("keeps its mode"));
        assert!(wrong("name: ada", "name: 'a;b'").contains("no name"));
        assert!(wrong("type: ext4", "type: 'a b'").contains("words"));
        assert!(wrong("ssh-ed25519 AAAA ada", "AAAA").contains("one line"));
    }

    #[test]
    fn units_are_named_as_systemd_names_them() {
        assert_eq!(unit_name("/data/models/"), "data-models");
        assert_eq!(unit_name("/.snap/a-b c"), "\\x2esnap-a\\x2db\\x20c");
    }
}
