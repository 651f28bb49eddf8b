use serde_json::Value;

use super::*;

const BINARY: &str = "/usr/bin/nvidia-container-runtime";

fn options(default: bool) -> Options {
    Options { nvidia_runtime: Some(BINARY.into()), default }
}

fn docker(text: &str, options: &Options) -> Result<String, GpuError> {
    docker::edit(text, options).map(|change| change.text)
}

fn temporary_folder() -> PathBuf {
    let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn other_docker_settings_are_preserved() {
    let after = docker("{\"log-driver\": \"journald\"}", &options(true)).unwrap();
    let read: Value = serde_json::from_str(&after).unwrap();
    assert_eq!(read["log-driver"], "journald");
    assert_eq!(
        (read["features"]["cdi"].clone(), read["runtimes"]["nvidia"]["path"].clone()),
        (true.into(), BINARY.into())
    );
    assert_eq!(docker(&after, &options(true)).unwrap(), after);
    assert!(docker("[]", &options(false)).is_err());
    let notes = docker::edit("{\"cdi-spec-dirs\": [\"/opt/cdi\"]}", &options(false)).unwrap().notes;
    assert!(notes[0].contains("cdi-spec-dirs lists neither"), "{notes:?}");
}

#[test]
fn docker_edit_adds_only_what_is_new() {
    let text = "{\r\n\t\"runtimes\": {\"nvidia\": {\"path\": \"/old\", \"args\": [\"--x\"]}},\r\n\t\"bip\": \"10.9.0.1/24\"\r\n}";
    let cdi = ",\r\n\t\"features\": {\r\n\t\t\"cdi\": true\r\n\t}\r\n}";
    let expected = format!("{}{cdi}", text.replace("/old", BINARY).trim_end_matches("\r\n}"));
    assert_eq!(docker(text, &options(false)).unwrap(), expected);
    let unchanged = " {\"features\" :{\"cdi\":true} }";
    assert_eq!(docker(unchanged, &Options { nvidia_runtime: None, default: false }).unwrap(), unchanged);
}

#[test]
fn undo_restores_docker_configuration_byte_for_byte() {
    let folder = temporary_folder();
    let path = folder.join("daemon.json");
    for before in ["{\n\t\"z\": 1,\n\t\"a\": {}\n}", "{\"z\":1}\r\n", "{}"] {
        std::fs::write(&path, before).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let edit = plan(Runtime::Docker, &path, &options(true)).unwrap();
        edit.write().unwrap();
        assert_eq!(std::fs::metadata(edit.backup()).unwrap().permissions().mode() & 0o777, 0o600);
        undo(&path).unwrap().write().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    }
    // A file that did not exist does not exist afterwards, although there is a backup of an earlier file.
    std::fs::remove_file(&path).unwrap();
    plan(Runtime::Docker, &path, &options(true)).unwrap().write().unwrap();
    undo(&path).unwrap().write().unwrap();
    assert!(!path.exists());
    std::fs::write(&path, b"\xff").unwrap();
    assert!(undo(&path).is_err(), "a file that cannot be backed up is not replaced");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn undo_restores_previous_content() {
    let folder = temporary_folder();
    let path = folder.join("config.toml");
    std::fs::write(&path, "version = 2 # mine\r\n").unwrap();
    let edit = plan(Runtime::Containerd, &path, &options(false)).unwrap();
    assert!(edit.diff().contains("BinaryName"));
    edit.write().unwrap();
    assert!(plan(Runtime::Containerd, &path, &options(false)).unwrap().is_empty());
    undo(&path).unwrap().write().unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "version = 2 # mine\r\n");
    std::fs::write(&path, "#".repeat(usize::try_from(MAX_BYTES).unwrap() + 1)).unwrap();
    assert!(plan(Runtime::Containerd, &path, &options(false)).unwrap_err().to_string().contains("at most"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn crio_drop_in_inherits_from_the_default_runtime() {
    let folder = temporary_folder();
    let drop_ins = folder.join("crio.conf.d");
    std::fs::create_dir_all(&drop_ins).unwrap();
    let packaged = "[crio.runtime]\ndefault_runtime = \"crun\"\ncdi_spec_dirs = [\"/etc/cdi\"]\n[crio.runtime.runtimes.crun]\nruntime_path = \"/usr/libexec/crio/crun\"\nmonitor_path = \"/usr/libexec/crio/conmon\"\nallowed_annotations = [\"io.containers.trace-syscall\"]\n[crio.runtime.runtimes.runc]\nmonitor_path = \"/other\"\n";
    std::fs::write(drop_ins.join("10-crio.conf"), packaged).unwrap();
    std::fs::write(drop_ins.join("99-z.conf"), "[crio.runtime]\ndefault_runtime = \"crun\"\n").unwrap();
    let path = drop_ins.join("99-nvidia.conf");
    let edit = plan(Runtime::Crio, &path, &options(true)).unwrap();
    assert_eq!(
        edit.after,
        "[crio.runtime]\ndefault_runtime = \"nvidia\"\n\n[crio.runtime.runtimes.nvidia]\nruntime_path = \"/usr/bin/nvidia-container-runtime\"\nmonitor_path = \"/usr/libexec/crio/conmon\"\nallowed_annotations = [\"io.containers.trace-syscall\"]\nruntime_type = \"oci\"\n"
    );
    let notes = edit.notes.join("\n");
    assert!(notes.contains("does not list /var/run/cdi") && notes.contains("99-z.conf is read later"), "{notes}");
    std::fs::write(&path, &edit.after).unwrap();
    assert!(plan(Runtime::Crio, &path, &options(true)).unwrap().is_empty());
    assert!(!plan(Runtime::Crio, &path, &options(false)).unwrap().after.contains("default_runtime"));
    assert!(plan(Runtime::Crio, &path, &Options { nvidia_runtime: None, default: false }).unwrap().is_empty());
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn podman_gets_nvidias_runtime_only_on_request() {
    let change = podman::edit("", &options(true)).unwrap();
    assert_eq!(
        change.text,
        "[engine]\nruntime = \"nvidia\"\n\n[engine.runtimes]\nnvidia = [\"/usr/bin/nvidia-container-runtime\"]\n"
    );
    assert_eq!(podman::edit(&change.text, &options(true)).unwrap().text, change.text);
    let cdi = podman::edit("# mine\n", &Options { nvidia_runtime: None, default: false }).unwrap();
    assert_eq!(cdi.text, "# mine\n");
    assert!(cdi.notes[0].contains("--device nvidia.com/gpu=all"));
}
