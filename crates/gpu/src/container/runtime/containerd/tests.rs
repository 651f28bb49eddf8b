//! The cases of `pkg/config/engine/containerd` of NVIDIA Container Toolkit are covered with values of our own.

use super::*;

const BINARY: &str = "/usr/bin/nvidia-container-runtime";

fn options(default: bool) -> Options {
    Options { nvidia_runtime: Some(BINARY.into()), default }
}

fn cdi_only() -> Options {
    Options { nvidia_runtime: None, default: false }
}

fn edited(text: &str, options: &Options) -> Change {
    let path = Path::new("/nowhere/config.toml");
    let change = edit(Runtime::Containerd, path, text, options).unwrap();
    let again = edit(Runtime::Containerd, path, &change.text, options).unwrap();
    assert_eq!(again.text, change.text, "the edit is idempotent");
    change
}

/// The value at a path of NVIDIA's runtime.
fn nvidia<'t>(document: &'t DocumentMut, plugin: &str, key: &[&str]) -> Option<&'t Item> {
    let path = [&["plugins", plugin, "containerd", "runtimes", "nvidia"], key].concat();
    toml::get(document.as_table(), &path)
}

#[test]
fn comments_and_order_are_preserved() {
    let text = "# ours, do not touch\nversion = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  # a mirror\n  sandbox_image = \"pause:3.9\" # pinned\n";
    let after = edited(text, &options(false)).text;
    assert!(after.starts_with("# ours, do not touch\nversion = 2\n"));
    assert!(after.contains("  # a mirror\n  sandbox_image = \"pause:3.9\" # pinned\n"), "{after}");
    assert!(after.contains("enable_cdi = true"));
    assert!(
        after.contains("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.nvidia.options]\nBinaryName"),
        "{after}"
    );
    assert!(!after.contains("default_runtime_name"));
    let windows = text.replace('\n', "\r\n");
    assert_eq!(edited(&windows, &options(false)).text, after.replace('\n', "\r\n"));
}

#[test]
fn settings_of_the_default_runtime_are_inherited() {
    for (version, plugin) in [(1, PLUGINS[0]), (2, PLUGINS[1]), (3, PLUGINS[2]), (4, PLUGINS[2]), (9, PLUGINS[2])] {
        let runtime = |name: &str, cgroup: bool| {
            format!(
                "[plugins.\"{plugin}\".containerd.runtimes.{name}]\nruntime_type = \"type.{name}\"\npod_annotations = [\"a/*\"]\n[plugins.\"{plugin}\".containerd.runtimes.{name}.options]\nBinaryName = \"/usr/bin/{name}\"\nSystemdCgroup = {cgroup}\n"
            )
        };
        for (default, expected, cgroup) in [
            ("", "runc", true),
            ("default_runtime_name = \"other\"", "other", false),
            ("default_runtime_name = \"nvidia-legacy\"", "runc", true),
        ] {
            let text = format!(
                "version = {version}\n[plugins.\"{plugin}\".containerd]\n{default}\n{}{}{}",
                runtime("runc", true),
                runtime("crun", true),
                runtime("other", false),
            );
            let change = edited(&text, &options(true));
            let document = toml::parse(&change.text).unwrap();
            let get = |key: &[&str]| nvidia(&document, plugin, key).map(|item| item.to_string().trim().to_owned());
            assert_eq!(get(&["runtime_type"]), Some(format!("\"type.{expected}\"")), "{}", change.text);
            assert_eq!(get(&["pod_annotations"]).as_deref(), Some("[\"a/*\"]"));
            assert_eq!(get(&["options", "SystemdCgroup"]), Some(cgroup.to_string()), "version {version}, {default}");
            assert_eq!(get(&["options", "BinaryName"]), Some(format!("\"{BINARY}\"")));
            assert_eq!(get(&["options", "Runtime"]).is_some(), version == 1, "version 1 names the program twice");
            assert_eq!(change.notes.iter().any(|note| note.contains("newer")), version == 9, "{:?}", change.notes);
        }
    }
}

#[test]
fn runtimes_without_type_or_in_inline_tables_are_inherited() {
    let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nruntimes = { crun = { runtime_type = \"\", options = { SystemdCgroup = true } } }\n";
    let document = toml::parse(&edited(text, &options(false)).text).unwrap();
    assert_eq!(nvidia(&document, PLUGINS[1], &["runtime_type"]).unwrap().as_str(), Some("io.containerd.runc.v2"));
    assert_eq!(nvidia(&document, PLUGINS[1], &["options", "SystemdCgroup"]).unwrap().as_bool(), Some(true));
}

#[test]
fn default_runtime_is_set_and_reset_as_by_nvidia_ctk() {
    let set = edited("version = 3\n", &options(true)).text;
    assert!(
        set.contains("[plugins.\"io.containerd.cri.v1.runtime\".containerd]\ndefault_runtime_name = \"nvidia\""),
        "{set}"
    );
    assert!(!edited(&set, &options(false)).text.contains("default_runtime_name"));
    assert_eq!(edited(&set, &cdi_only()).text, set, "without NVIDIA's runtime only CDI is configured");
    let other =
        "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd]\ndefault_runtime_name = \"crun\" # why\n";
    assert!(edited(other, &options(false)).text.contains("default_runtime_name = \"crun\" # why"));
    assert!(edited(other, &options(true)).text.contains("default_runtime_name = \"nvidia\" # why"));
}

#[test]
fn containerd_2_enables_cdi_by_default() {
    for version in [3, 4] {
        let text = format!("version = {version}\n");
        assert_eq!(edited(&text, &cdi_only()).text, text);
        let off = format!("{text}[plugins.\"io.containerd.cri.v1.runtime\"]\nenable_cdi = false\n");
        assert!(edited(&off, &cdi_only()).text.contains("enable_cdi = true"));
    }
    for text in ["", "version = 2\n", "root = \"/x\"\n"] {
        let after = edited(text, &cdi_only()).text;
        assert!(after.contains("enable_cdi = true\ncdi_spec_dirs = [\"/etc/cdi\", \"/var/run/cdi\"]"), "{after}");
    }
    assert!(edited("", &cdi_only()).text.starts_with("version = 2\n"));
}

#[test]
fn template_of_microk8s_keeps_its_variables() {
    let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = \"${SNAPSHOTTER}\"\n  default_runtime_name = \"${RUNTIME}\"\n  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n    runtime_type = \"${RUNTIME_TYPE}\"\n";
    let after = edited(text, &options(false)).text;
    assert!(text.lines().all(|line| after.contains(line)), "{after}");
    let document = toml::parse(&after).unwrap();
    assert_eq!(nvidia(&document, PLUGINS[1], &["runtime_type"]).unwrap().as_str(), Some("${RUNTIME_TYPE}"));
}

#[test]
fn settings_without_effect_are_reported() {
    let notes = |text: &str| edited(text, &cdi_only()).notes.join("\n");
    for text in [
        "disabled_plugins = [\"cri\"]\n",
        "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
        "version = 3\ndisabled_plugins = [\"io.containerd.cri.v1.images\", \"x\"]\n",
    ] {
        assert!(notes(text).contains("containerd config default"), "{text}: {}", notes(text));
    }
    assert_eq!(notes("version = 3\ndisabled_plugins = [\"io.containerd.snapshotter.v1.zfs\"]\n"), "");
    let folders =
        |list: &str| notes(&format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\ncdi_spec_dirs = {list}\n"));
    assert!(folders("[\"/opt/cdi\"]").contains("lists neither /etc/cdi"), "{}", folders("[\"/opt/cdi\"]"));
    assert!(folders("[\"/etc/cdi/\"]").contains("--cdi-dir /etc/cdi"));
    assert!(folders("[\"/run/cdi\"]").contains("does not list /etc/cdi"));
    assert_eq!(folders("[\"/var/run/cdi\", \"/etc/cdi\"]"), "");
}

#[test]
fn imports_are_read_and_overrides_reported() {
    let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
    std::fs::create_dir_all(folder.join("conf.d")).unwrap();
    let path = folder.join("config.toml");
    let runc =
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nSystemdCgroup = true\n";
    std::fs::write(folder.join("conf.d/10-runc.toml"), runc).unwrap();
    let plan = |text: &str, options: &Options| edit(Runtime::Containerd, &path, text, options).unwrap();
    // A relative pattern is relative to the file that imports.
    let text = "version = 2\nimports = [\"conf.d/*.toml\"]\n";
    let change = plan(text, &options(false));
    assert!(change.text.contains("SystemdCgroup = true"), "{}", change.text);
    assert!(
        change.notes.iter().any(|note| note.contains("10-runc.toml is imported") && note.contains("before 2.1")),
        "{:?}",
        change.notes
    );
    // Imports of imports are read, and circles end.
    let last = "version = 3\nimports = [\"../config.toml\"]\n[plugins.\"io.containerd.cri.v1.runtime\"]\nenable_cdi = false\n[plugins.\"io.containerd.cri.v1.runtime\".containerd]\ndefault_runtime_name = \"crun\"\n";
    std::fs::write(folder.join("conf.d/99-last.toml"), last).unwrap();
    std::fs::write(&path, text).unwrap();
    let notes = plan(text, &options(true)).notes.join("\n");
    assert!(
        notes.contains("99-last.toml is imported after")
            && notes.contains("overrides enable_cdi, default_runtime_name"),
        "{notes}"
    );
    let notes = plan("version = 2\nimports = [\"/nowhere/x.toml\"]\n", &options(true)).notes.join("\n");
    assert!(notes.contains("/nowhere/x.toml, which does not exist"), "{notes}");
    std::fs::write(folder.join("conf.d/20-broken.toml"), "a = [").unwrap();
    let error = edit(Runtime::Containerd, &path, text, &options(true)).err().unwrap().to_string();
    assert!(error.contains("20-broken.toml") && error.contains("line 1"), "{error}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn drop_in_of_k0s_inherits_from_the_main_file() {
    let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
    std::fs::create_dir_all(folder.join("containerd.d")).unwrap();
    let path = folder.join("containerd.d/nvidia.toml");
    let plan = || edit(Runtime::K0s, &path, "", &options(false)).unwrap();
    assert!(plan().text.starts_with("version = 3\n"), "k0s 1.36 refuses version 2");
    std::fs::write(folder.join("containerd.toml"), "# k0s_managed=true\nversion = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nSystemdCgroup = true\n").unwrap();
    let change = plan();
    assert!(
        change.text.starts_with("version = 2\n") && change.text.contains("SystemdCgroup = true"),
        "{}",
        change.text
    );
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn invalid_configuration_is_rejected() {
    for (text, reason) in [
        ("version = [", "line 1"),
        ("version = \"2\"\n", "'version' is not a number"),
        ("version = 0\n", "no version 0"),
        ("version = 2\nplugins = 3\n", "'plugins' is not a table"),
        ("version = 3\n{{ template \"base\" . }}\n", "--runtime k3s"),
    ] {
        let error =
            edit(Runtime::Containerd, Path::new("/nowhere/c.toml"), text, &options(false)).err().unwrap().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
}
