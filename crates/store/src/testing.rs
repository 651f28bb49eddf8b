//! Test helpers: external services, which a machine may lack, and temporary folders and disks.

use std::io::Write;

/// The URL of a service that `testkit/services.py` starts, read from the environment variable `variable`. Without it the function
/// prints a note to stderr and returns `None`, and the test is skipped. Where all services are required (`CI` is set, or
/// `SLIPWAY_TEST_SERVICES=required`, which `testkit/services.py` sets), the test fails instead.
pub(crate) fn service(variable: &str) -> Option<String> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let required = set("CI").is_some() || set("SLIPWAY_TEST_SERVICES").is_some_and(|value| value == "required");
    match service_url(variable, set(variable), required) {
        Ok(Ok(url)) => Some(url),
        Ok(Err(skipped)) => {
            // `eprintln!` would not do: the test harness hides its output for tests that pass.
            writeln!(std::io::stderr(), "{skipped}").unwrap();
            None
        }
        Err(missing) => panic!("{missing}"),
    }
}

/// `Ok(Ok(url))` when the service is configured, `Ok(Err(note))` when its tests may be skipped, `Err(message)` when it is required.
fn service_url(variable: &str, url: Option<String>, required: bool) -> Result<Result<String, String>, String> {
    match (url, required) {
        (Some(url), _) => Ok(Ok(url)),
        (None, false) => Ok(Err(format!("skipped: {variable} is not set; run the tests with testkit/services.py"))),
        (None, true) => Err(format!("{variable} is not set, and this test run requires all services")),
    }
}

/// Creates a temporary folder with a unique name; the test removes it.
pub(crate) fn temp_folder(label: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("slipway-{label}-{}", slipway_core::ids::hex32()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A small tmpfs mounted on a temporary folder, to test full disks; unmounted on drop.
pub(crate) struct SmallDisk(pub(crate) std::path::PathBuf);

impl SmallDisk {
    /// Mounts a tmpfs of `size` bytes. Prints a note to stderr and returns `None` if this user is not allowed to mount.
    pub(crate) fn mount(size: u64) -> Option<Self> {
        let folder = temp_folder("disk");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "slipway-test"])
            .arg(&folder)
            .output()
            .is_ok_and(|done| done.status.success());
        if mounted {
            return Some(Self(folder));
        }
        std::fs::remove_dir(&folder).unwrap();
        writeln!(std::io::stderr(), "skipped: this user is not allowed to mount a small tmpfs").unwrap();
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} is still mounted", self.0.display());
        std::fs::remove_dir(&self.0).unwrap();
    }
}

#[test]
fn missing_service_skips_tests_unless_required() {
    assert_eq!(service_url("X", Some("url".into()), true), Ok(Ok("url".into())));
    assert!(matches!(service_url("X", None, false), Ok(Err(_))));
    assert!(service_url("X", None, true).is_err());
}
