//! What a machine has: one shell script that asks everything and changes nothing, and its answer.
//!
//! The script needs nothing but a POSIX shell and what every Debian and Ubuntu has, so that a plan needs nothing installed. Every
//! answer is a line: resource, field, value in base64.

use std::collections::BTreeMap;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::resource::{Resource, What};
use crate::shell::{FOLDER, quote};

/// More of a file is not read; a file that is longer is none that we write.
pub(crate) const MOST_BYTES: usize = 1 << 20;

/// Answers, by resource and field. Fields of the whole machine are of the resource `@`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts(BTreeMap<(String, String), Vec<u8>>);

/// How it is answered: a text of any kind from the input, a word of the machine, what is of a file, how a command ends. Processes are most
/// of what a probe costs, so few are made.
const ANSWERS: &str = r#"
p() { printf '%s\t%s\t' "$1" "$2"; base64 -w0; echo; }
v() { printf '@\t%s\t=%s\n' "$1" "$2"; }
f() {
  [ -e "$2" ] || return 0
  x=$(stat -Lc '%s=%a %F' "$2"); printf '%s\tstat\t%s\n%s\tcontent\t' "$1" "=${x#*=}" "$1"
  # One byte more than we read tells that there is more.
  if [ ! -f "$2" ]; then :; elif [ "${x%%=*}" -le MOST ]; then base64 -w0 "$2"; else head -c $((MOST + 1)) "$2" | base64 -w0; fi; echo
}
c() { (eval "$2") </dev/null >/dev/null 2>&1; printf '%s\tstatus\t=%s\n' "$1" $?; }
"#;

/// Asks about the machine itself; see [`Machine`].
const MACHINE: &str = r#"
(. /etc/os-release; v os "$ID $VERSION_ID") 2>/dev/null
v kernel "$(uname -rm)"; v cpus "$(nproc)"; v clock "$(date +%s)"
while read -r key n rest; do [ "$key" = MemTotal: ] && v memory "$n" && break; done </proc/meminfo
x=$(stat -fc '%a * %S / 1024' /) && v disk "$(($x))"
read -r x </proc/sys/kernel/hostname && v hostname "$x"; read -r x </proc/sys/kernel/random/boot_id && v boot "$x"
gpus=; for d in /sys/bus/pci/devices/*; do
  { read -r x <"$d/vendor"; } 2>/dev/null && [ "$x" = 0x10de ] || continue; read -r c <"$d/class"; read -r i <"$d/device"
  case $c in 0x0300*|0x0302*) gpus="$gpus${d##*/} $i;";; esac; done; v gpus "$gpus"
x=; { read -r x </sys/module/nvidia/version; } 2>/dev/null; [ -d /sys/module/nouveau ] && x=nouveau; v driver "$x"
for f in /sys/firmware/efi/efivars/SecureBoot-*; do [ -e "$f" ] && v secureboot "$(od -An -t u1 -j4 -N1 "$f")"; done
"#;

/// Who is in the cluster; nobody where it is not there yet.
const MEMBERS: &str = "microk8s kubectl get nodes -o name </dev/null 2>/dev/null | p @ nodes\n";

/// Asks about the machine itself, too.
pub const ABOUT: u8 = 1;
/// Asks who is in the cluster, too.
pub const NODES: u8 = 2;
/// Asks about known troubles, too.
pub const DOCTOR: u8 = 4;

/// The script that asks what these resources need to know, and [`ABOUT`], [`NODES`] and [`DOCTOR`] where they are among `more`.
pub fn script(resources: &[Resource], more: u8) -> String {
    let mut out = ANSWERS.replace("MOST", &MOST_BYTES.to_string());
    if more & ABOUT != 0 {
        out += MACHINE;
    }
    if more & NODES != 0 {
        out += MEMBERS;
    }
    if more & DOCTOR != 0 {
        out += crate::doctor::QUESTIONS;
    }
    let names = |pick: &dyn Fn(&What) -> Option<String>| -> Vec<String> {
        resources.iter().filter_map(|r| pick(&r.what)).map(|n| quote(&n)).collect()
    };
    let packages = names(&|w| if let What::Package { name, .. } = w { Some(name.clone()) } else { None });
    if !packages.is_empty() {
        let format = "${Package}\\t${db:Status-Status}\\t${Version}\\t${db:Status-Want}\\n";
        let _ = writeln!(out, "dpkg-query -W -f '{format}' {} 2>/dev/null | p @ packages", packages.join(" "));
    }
    if resources.iter().any(|r| matches!(r.what, What::Snap { .. })) {
        out += "snap list --unicode=never 2>/dev/null | p @ snaps\n";
    }
    let services = names(&|w| if let What::Service { name } = w { Some(name.clone()) } else { None });
    if !services.is_empty() {
        let _ = writeln!(
            out,
            "systemctl show -p Id,LoadState,UnitFileState,ActiveState {} 2>/dev/null | p @ services",
            services.join(" ")
        );
    }
    for resource in resources {
        let id = &resource.id;
        match &resource.what {
            What::File { path, .. } | What::Edit { path, .. } => {
                let _ = writeln!(out, "f {id} {}", quote(path));
            }
            What::Command { check: question, .. } | What::Reboot { when: question, .. } => {
                let _ = writeln!(out, "c {id} {}", quote(question));
            }
            What::Package { .. } | What::Snap { .. } | What::Service { .. } => {}
        }
        if resource.then.is_some() {
            let _ = writeln!(out, "[ -e {} ] && printf '%s\\tpending\\t=1\\n' {id}", quote(&pending_file(id)));
        }
    }
    out += "v end end\n";
    out
}

/// Where it is remembered that a change waits for what follows it.
pub(crate) fn pending_file(id: &str) -> String {
    format!("{FOLDER}/pending/{}", id.replace('/', "_"))
}

impl Facts {
    /// Reads the script's output.
    ///
    /// # Errors
    /// When it breaks off, or a line is of another form.
    pub fn parse(output: &str) -> Result<Self, String> {
        let mut facts = BTreeMap::new();
        for line in output.lines() {
            let mut parts = line.splitn(3, '\t');
            let (Some(id), Some(field), Some(value)) = (parts.next(), parts.next(), parts.next()) else {
                return Err(format!("an answer of another form: {}", line.chars().take(120).collect::<String>()));
            };
            let value = match value.strip_prefix('=') {
                Some(plain) => plain.as_bytes().to_vec(),
                None => STANDARD.decode(value.trim()).map_err(|e| format!("{id} {field}: {e}"))?,
            };
            facts.insert((id.to_owned(), field.to_owned()), value);
        }
        let facts = Self(facts);
        if facts.machine("end").is_empty() {
            return Err("the answer breaks off".into());
        }
        Ok(facts)
    }

    /// A resource's field.
    pub(crate) fn bytes(&self, id: &str, field: &str) -> Option<&[u8]> {
        self.0.get(&(id.to_owned(), field.to_owned())).map(Vec::as_slice)
    }

    /// The same as text.
    pub(crate) fn text(&self, id: &str, field: &str) -> Option<String> {
        self.bytes(id, field).map(|b| String::from_utf8_lossy(b).into_owned())
    }

    /// A field of the whole machine, empty when it is not there.
    pub(crate) fn machine(&self, field: &str) -> String {
        self.text("@", field).unwrap_or_default().trim().to_owned()
    }

    pub(crate) fn succeeded(&self, id: &str) -> bool {
        self.text(id, "status").is_some_and(|s| s.trim() == "0")
    }

    pub(crate) fn pending(&self, id: &str) -> bool {
        self.bytes(id, "pending").is_some()
    }

    /// What newer answers say replaces what these say of the same resources; of the machine only what they say.
    pub(crate) fn renew(&mut self, newer: Self, ids: &[&str]) {
        self.0.retain(|(id, _), _| !ids.contains(&id.as_str()));
        self.0.extend(newer.0);
    }

    /// The machine.
    pub fn about(&self) -> Machine {
        let number = |field: &str| self.machine(field).parse::<u64>().unwrap_or(0);
        let (distribution, release) =
            self.machine("os").split_once(' ').map_or_else(Default::default, |(a, b)| (a.to_owned(), b.to_owned()));
        let (kernel, arch) =
            self.machine("kernel").split_once(' ').map_or_else(Default::default, |(a, b)| (a.to_owned(), b.to_owned()));
        Machine {
            hostname: self.machine("hostname"),
            distribution,
            release,
            kernel,
            arch,
            cpus: number("cpus"),
            memory_mib: number("memory") >> 10,
            disk_free_mib: number("disk") >> 10,
            clock: number("clock"),
            boot: self.machine("boot"),
            gpus: self.machine("gpus").split_terminator(';').map(str::to_owned).collect(),
            driver: self.machine("driver"),
            secure_boot: self.machine("secureboot") == "1",
        }
    }
}

/// What a machine is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// Its own name.
    pub hostname: String,
    /// `ubuntu`, `debian`.
    pub distribution: String,
    /// `24.04`.
    pub release: String,
    /// Of the kernel.
    pub kernel: String,
    /// `x86_64`.
    pub arch: String,
    /// Processors.
    pub cpus: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Free space of `/` in MiB.
    pub disk_free_mib: u64,
    /// Seconds since 1970, by its own clock.
    pub clock: u64,
    /// Changes with every start.
    pub boot: String,
    /// NVIDIA's cards: address and device id.
    pub gpus: Vec<String>,
    /// Version of NVIDIA's loaded driver, or `nouveau`.
    pub driver: String,
    /// Whether the firmware loads signed modules only.
    pub secure_boot: bool,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Facts as a probe would have told them.
    pub(crate) fn facts(list: &[(&str, &str, &str)]) -> Facts {
        Facts(list.iter().map(|(i, f, v)| (((*i).to_owned(), (*f).to_owned()), v.as_bytes().to_vec())).collect())
    }

    #[test]
    fn an_answer_is_read_or_refused() {
        let line = |id: &str, field: &str, value: &str| format!("{id}\t{field}\t{}\n", STANDARD.encode(value));
        let whole = line("@", "os", "debian 12") + &line("a/b", "status", "0\n") + &line("@", "end", "end");
        let facts = Facts::parse(&whole).unwrap();
        assert!(facts.succeeded("a/b") && !facts.succeeded("a/c"));
        assert_eq!(facts.about().distribution, "debian");
        assert!(Facts::parse(&line("@", "os", "debian 12")).unwrap_err().contains("breaks off"));
        assert!(Facts::parse("Welcome to Ubuntu\n").unwrap_err().contains("another form"));
    }

    #[test]
    fn the_script_runs_here() {
        let done = std::process::Command::new("sh").arg("-c").arg(script(&[], ABOUT | DOCTOR)).output().unwrap();
        let facts = Facts::parse(&String::from_utf8(done.stdout).unwrap()).unwrap();
        let about = facts.about();
        assert!(
            about.cpus > 0 && about.clock > 1_700_000_000 && about.memory_mib > 0 && about.disk_free_mib > 0,
            "{about:?}"
        );
        assert!(about.arch == std::env::consts::ARCH && about.boot.len() == 36, "{about:?}");
    }

    #[test]
    fn files_and_commands_are_asked_about() {
        let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
        let at = |name: &str| folder.join(name).display().to_string();
        std::fs::create_dir(&folder).unwrap();
        for (name, bytes) in [("a file's", &b"a\tb\n"[..]), ("empty", b""), ("long", &[b'x'; MOST_BYTES + 9])] {
            std::fs::write(at(name), bytes).unwrap();
        }
        std::fs::create_dir(at("folder")).unwrap();
        let mut resources: Vec<Resource> = ["a file's", "empty", "long", "folder", "none"]
            .into_iter()
            .zip(["file", "empty", "long", "folder", "none"])
            .map(|(path, name)| {
                let content = crate::resource::Text { text: String::new(), secret: false };
                Resource::new(
                    crate::resource::Layer::System,
                    name,
                    What::File { path: at(path), content, mode: "0644".into() },
                )
            })
            .collect();
        for (name, check) in
            [("yes", "[ 'a b' = \"a b\" ]"), ("three", "exit 3"), ("wrong", "if (; then"), ("input", "read -r x")]
        {
            let (check, run, missing) = (check.to_owned(), String::new(), String::new());
            resources.push(Resource::new(
                crate::resource::Layer::System,
                name,
                What::Command { check, run, undo: None, missing },
            ));
        }
        let facts = crate::converge::ask(&resources).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let mode = |id: &str| facts.text(id, "stat").map(|s| s.split_once(' ').unwrap().1.to_owned());
        assert_eq!(mode("system/file").as_deref(), Some("regular file"));
        assert_eq!(mode("system/empty").as_deref(), Some("regular empty file"));
        assert_eq!((mode("system/folder").as_deref(), mode("system/none")), (Some("directory"), None));
        assert_eq!(facts.text("system/file", "content").as_deref(), Some("a\tb\n"));
        assert_eq!(facts.bytes("system/long", "content").map(<[u8]>::len), Some(MOST_BYTES + 1));
        assert!(["empty", "folder"].iter().all(|f| facts.bytes(&format!("system/{f}"), "content") == Some(b"")));
        let status = |id: &str| facts.text(id, "status").unwrap_or_default();
        assert_eq!((status("system/yes"), status("system/three")), ("0".into(), "3".into()));
        assert!(!facts.succeeded("system/wrong") && !facts.succeeded("system/input"));
    }

    #[test]
    fn quotes_hold() {
        let text = "a'b $(touch x) \\ \"";
        let done =
            std::process::Command::new("sh").arg("-c").arg(format!("printf %s {}", quote(text))).output().unwrap();
        assert_eq!(String::from_utf8(done.stdout).unwrap(), text);
    }
}
