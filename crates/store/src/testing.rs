//! Services that tests need and that a machine may not have.

use std::io::Write;

/// The URL of a service that `testkit/services.py` starts, from the variable that names it. `None` where there is no service, which
/// is said on stderr. Where every service has to be there (`CI` is set, or `SLIPWAY_TEST_SERVICES=required`, which
/// `testkit/services.py` sets), a missing one fails the test.
pub(crate) fn service(variable: &str) -> Option<String> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let required = set("CI").is_some() || set("SLIPWAY_TEST_SERVICES").is_some_and(|value| value == "required");
    match of(variable, set(variable), required) {
        Ok(Ok(url)) => Some(url),
        Ok(Err(skipped)) => {
            // Not `eprintln!`, which the test harness hides for tests that pass.
            writeln!(std::io::stderr(), "{skipped}").unwrap();
            None
        }
        Err(missing) => panic!("{missing}"),
    }
}

/// The service's URL, or why the tests that need it are skipped, or why they must not be.
fn of(variable: &str, url: Option<String>, required: bool) -> Result<Result<String, String>, String> {
    match (url, required) {
        (Some(url), _) => Ok(Ok(url)),
        (None, false) => Ok(Err(format!("skipped: {variable} is not set; run the tests with testkit/services.py"))),
        (None, true) => Err(format!("{variable} is not set, and this run must not skip tests of services")),
    }
}

/// A new folder of a test's own.
pub(crate) fn folder(what: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("slipway-{what}-{}", slipway_core::ids::hex32()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A disk of `size` bytes mounted on a new folder; none where this user may not mount one, which is said on stderr.
pub(crate) struct SmallDisk(pub(crate) std::path::PathBuf);

impl SmallDisk {
    pub(crate) fn mount(size: u64) -> Option<Self> {
        let folder = folder("disk");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "slipway-test"])
            .arg(&folder)
            .output()
            .is_ok_and(|done| done.status.success());
        if mounted {
            return Some(Self(folder));
        }
        std::fs::remove_dir(&folder).unwrap();
        writeln!(std::io::stderr(), "skipped: this user may not mount a small disk to fill").unwrap();
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
        std::fs::remove_dir(&self.0).unwrap();
    }
}

#[test]
fn a_missing_service_is_skipped_only_where_it_may_be() {
    assert_eq!(of("X", Some("url".into()), true), Ok(Ok("url".into())));
    assert!(matches!(of("X", None, false), Ok(Err(_))));
    assert!(of("X", None, true).is_err());
}
