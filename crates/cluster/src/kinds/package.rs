//! Packages of apt and dnf: compare, apply and undo. The probe reports both in the same form, so they are compared in the same way.
//!
//! Source: apt-get(8), apt-mark(8); DNF, "Command Reference" (a name with a version installs, upgrades or downgrades to it), DNF plugins,
//! "versionlock" (a command of its own since DNF 5).

use crate::probe::Facts;
use crate::resource::{Change, PackageManager};
use crate::shell::ChangeContext;
use crate::shell::quote;
use crate::undo::Undo;

/// An installed package, as dpkg or rpm reports it.
struct Installed {
    version: String,
    held: bool,
}

fn installed(facts: &Facts, name: &str) -> Option<Installed> {
    let list = facts.machine("packages");
    list.lines().find_map(|line| {
        let mut fields = line.split('\t');
        let (found, status) = (fields.next()?, fields.next()?);
        (found == name && status == "installed")
            .then(|| Some(Installed { version: fields.next()?.to_owned(), held: fields.next()? == "hold" }))?
    })
}

pub(crate) fn check(facts: &Facts, name: &str, version: Option<&str>, hold: bool) -> Vec<Change> {
    let Some(now) = installed(facts, name) else {
        let held = if hold { ", held" } else { "" };
        return vec![Change::add(format!(
            "package {name}{}{held}",
            version.map(|v| format!(" {v}")).unwrap_or_default()
        ))];
    };
    let mut changes = Vec::new();
    if let Some(desired) = version.filter(|v| *v != now.version) {
        changes.push(Change::alter(format!("package {name} {} -> {desired}", now.version)));
    }
    if hold != now.held {
        changes.push(Change::alter(format!("package {name} {}", if hold { "held" } else { "no longer held" })));
    }
    changes
}

/// apt-get waits for its lock (unattended upgrades hold it after a boot), keeps edited configuration files, and never prompts.
const APT: &str = "DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold \
                   -o Dpkg::Options::=--force-confdef";

/// dpkg and apt-mark fail at once if the lock is held, so this shell function retries them every two seconds for five minutes.
const RETRY_LOCK: &str = "waiting() { n=0; while ! said=$(\"$@\" 2>&1); do case $said in *lock*) ;; *) n=150;; esac; n=$((n+1)); \
                       if [ $n -ge 150 ]; then echo \"$said\"; return 1; fi; sleep 2; done; }";

/// dnf waits for its lock by itself.
const DNF: &str = "dnf -q -y";

/// A package with its version, as dnf takes it.
fn with_version(name: &str, version: Option<&str>) -> String {
    version.map_or_else(|| name.to_owned(), |version| format!("{name}-{version}"))
}

/// Holds a package at its version. DNF 4 needs a plugin for that.
fn dnf_hold(name: &str) -> String {
    format!(
        "{{ dnf -q versionlock list >/dev/null 2>&1 || {DNF} install python3-dnf-plugin-versionlock; }} && {DNF} versionlock add {}",
        quote(name)
    )
}

pub(crate) fn apply(
    facts: &Facts,
    name: &str,
    version: Option<&str>,
    hold: bool,
    context: &mut ChangeContext<'_>,
) -> Result<(), String> {
    let (before, package) = (installed(facts, name), quote(name));
    let missing = before.as_ref().is_none_or(|b| version.is_some_and(|v| v != b.version));
    if facts.package_manager() == Some(PackageManager::Dnf) {
        if missing {
            context.shell(&format!("{DNF} install {}", quote(&with_version(name, version))))?;
        }
        return match (before.is_some_and(|b| b.held), hold) {
            (false, true) => context.shell(&dnf_hold(name)),
            (true, false) => context.shell(&format!("{DNF} versionlock delete {package}")),
            _ => Ok(()),
        };
    }
    let target = quote(&version.map_or_else(|| name.to_owned(), |v| format!("{name}={v}")));
    if missing {
        // An interrupted dpkg run is completed first. The package lists are updated if they lack the package, and if the mirror no longer
        // has the version that they name.
        let script = format!(
            "{RETRY_LOCK}; waiting dpkg --configure -a || exit; \
             get() {{ {APT} install --no-install-recommends --allow-change-held-packages --allow-downgrades {target}; }}; \
             if [ -n \"$(apt-cache policy {package} | sed -n 's/^  Candidate: //p' | grep -v none)\" ] && get; then exit 0; fi; \
             {APT} update && get"
        );
        context.shell(&script)?;
    }
    context.shell(&format!("{RETRY_LOCK}; waiting apt-mark {} {package}", if hold { "hold" } else { "unhold" }))
}

pub(crate) fn undo(facts: &Facts, name: &str) -> Undo {
    let package = quote(name);
    let before = installed(facts, name);
    if facts.package_manager() == Some(PackageManager::Dnf) {
        return Undo::Shell(match before {
            None => format!("{DNF} versionlock delete {package} >/dev/null 2>&1; {DNF} remove {package}"),
            Some(b) => {
                let lock = if b.held { dnf_hold(name) } else { "true".into() };
                format!(
                    "{DNF} versionlock delete {package} >/dev/null 2>&1; {DNF} install {} && {lock}",
                    quote(&with_version(name, Some(&b.version)))
                )
            }
        });
    }
    Undo::Shell(match before {
        None => format!("apt-mark unhold {package} >/dev/null; {APT} remove {package}"),
        Some(b) => format!(
            "{APT} install --allow-change-held-packages --allow-downgrades {} && apt-mark {} {package} >/dev/null",
            quote(&format!("{name}={}", b.version)),
            if b.held { "hold" } else { "unhold" }
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tests::facts;

    #[test]
    fn package_version_and_hold_are_compared() {
        let facts = facts(&[(
            "@",
            "packages",
            "jq\tinstalled\t1.6-2\tinstall\ncurl\tinstalled\t7.88\thold\nvim\tconfig-files\t9\tdeinstall\n",
        )]);
        let signs = |name: &str, version: Option<&str>, hold: bool| -> String {
            check(&facts, name, version, hold).iter().map(|c| c.sign).collect()
        };
        assert_eq!(signs("jq", None, false), "");
        assert_eq!(signs("jq", Some("1.7"), true), "~~");
        assert_eq!(signs("curl", None, true), "");
        assert_eq!(signs("curl", None, false), "~");
        assert_eq!((signs("vim", None, false), signs("git", None, false)), ("+".into(), "+".into()));
    }

    #[test]
    fn dnf_and_apt_are_undone_with_their_own_commands() {
        let with = |manager: &str, packages: &str| {
            let facts = facts(&[("@", "manager", manager), ("@", "packages", packages)]);
            match undo(&facts, "jq") {
                Undo::Shell(script) => script,
                other => panic!("{other:?}"),
            }
        };
        let held = "jq\tinstalled\t1.6-14.el9\thold\n";
        assert!(with("dnf", "").ends_with("dnf -q -y remove 'jq'"));
        let back = with("dnf", held);
        assert!(back.contains("install 'jq-1.6-14.el9'") && back.ends_with("versionlock add 'jq'"), "{back}");
        assert!(with("apt", "").contains("apt-get") && with("", held).contains("'jq=1.6-14.el9'"));
    }

    #[test]
    fn resources_of_another_package_manager_do_not_differ() {
        use crate::resource::{Layer, Resource, ResourceKind, Text};
        let content = Text { text: "a\n".into(), secret: false };
        let what = ResourceKind::File { path: "/etc/apt/x".into(), content, mode: "0644".into() };
        let file = Resource::new(Layer::System, "x", what).only_with(PackageManager::Apt);
        let differs = |manager: &str| !file.check(&facts(&[("@", "manager", manager)])).is_empty();
        assert!(differs("apt") && differs("") && !differs("dnf"));
    }
}
