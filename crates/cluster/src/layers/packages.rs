//! Shell functions for scripts that install packages with the package manager of the machine: apt of Debian and Ubuntu, or dnf of RHEL and
//! its relatives. A package with a fixed version is a resource of its own kind ([`crate::kinds`]); these scripts are for packages whose exact
//! version is known only on the machine.
//!
//! Source: apt-get(8), apt-mark(8), sources.list(5) (deb822); DNF, "Command Reference" (`install`, `--enablerepo`), yum.conf(5).

/// `apt` is set on a machine with apt and empty on one with dnf. The functions are `get` (packages, each as `NAME` or `NAME=VERSION*`), `remove`,
/// `version_of` (an installed package; nothing if it is not installed) and `known` (whether a package can be installed).
pub(super) const FUNCTIONS: &str = r#"
apt=; command -v apt-get >/dev/null && apt=1
repositories=
apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold "$@"; }
get() {
  if [ -n "$apt" ]; then apt_get --no-install-recommends --allow-change-held-packages --allow-downgrades install "$@"; return; fi
  words=; for p in "$@"; do words="$words $(echo "$p" | sed 's/=/-/')"; done
  dnf -q -y $repositories install $words
}
remove() { if [ -n "$apt" ]; then apt_get --allow-change-held-packages purge "$@"; else dnf -q -y remove "$@"; fi; }
version_of() {
  if [ -n "$apt" ]; then dpkg-query -W -f '${db:Status-Status} ${Version}' "$1" 2>/dev/null | sed -n 's/^installed //p'
  else rpm -q --qf '%{VERSION}-%{RELEASE}' "$1" 2>/dev/null | grep -v 'not installed'; fi
}
known() { if [ -n "$apt" ]; then LC_ALL=C apt-cache policy "$1" | grep -q 'Candidate: [^(]'; else dnf -q list "$1" >/dev/null 2>&1; fi; }
update() { if [ -n "$apt" ]; then apt-get -qq -o DPkg::Lock::Timeout=300 -o APT::Update::Error-Mode=any update; fi; }
"#;
