//! Edits the Go template from which k3s and RKE2 write containerd's configuration. The template is edited as text, line by line, because it
//! is TOML only after k3s has executed it; its actions (`{{ ... }}`) stay as they are.
//!
//! Source: k3s, documentation, "Advanced Options / Configuration", "Configuring containerd", and `pkg/agent/templates` (the base template
//! and its fields `ExtraRuntimes` and `SystemdCgroup`).

use std::path::{Path, PathBuf};

use toml_edit::Key;

use super::containerd::plugin;
use super::{Change, NVIDIA, Options, Runtime, invalid};
use crate::GpuError;

/// The template for containerd 2, which k3s prefers, and the one for containerd 1.7.
const NAMES: [&str; 2] = ["config-v3.toml.tmpl", "config.toml.tmpl"];
/// The action that includes k3s' own template.
const BASE: &str = "{{ template \"base\" . }}";
/// Whether k3s configures this runtime itself, because it found NVIDIA's program on the machine. A second table would make the file invalid.
const IF_NOT_DETECTED: &str = "{{ if not (index .ExtraRuntimes \"nvidia\").RuntimeType }}";
/// The setting of the default runtime in k3s' base template.
const SYSTEMD_CGROUP: &str = "SystemdCgroup = {{ .SystemdCgroup }}";

/// The template in this folder that is in effect, or the one to create. k3s without a template says with the version of the file that it
/// wrote which containerd it runs.
pub(super) fn path(folder: &Path) -> PathBuf {
    let existing = NAMES.iter().map(|name| folder.join(name)).find(|path| path.exists());
    existing.unwrap_or_else(|| {
        let written = std::fs::read_to_string(folder.join("config.toml")).unwrap_or_default();
        let is_old =
            written.lines().any(|line| setting(line).is_some_and(|(key, value)| key == "version" && value == "2"));
        folder.join(NAMES[usize::from(is_old)])
    })
}

/// Edits the template.
pub(super) fn edit(runtime: Runtime, path: &Path, text: &str, options: &Options) -> Result<Change, GpuError> {
    let is_empty = text.trim().is_empty();
    let start = if is_empty { format!("{BASE}\n") } else { text.to_owned() };
    let mut template = Template::parse(&start)?;
    let version = template.version().unwrap_or_else(|| if path.ends_with(NAMES[1]) { 2 } else { 3 });
    let plugin = plugin(version);
    let mut notes = Vec::new();
    if version < 3 {
        // CDI is enabled by default in containerd 2, but not in 1.7.
        let block = ["plugins", plugin];
        if template.block(&block).is_some() {
            template.set(&block, "enable_cdi", "true")?;
        } else {
            notes.push(format!(
                "containerd 1.7 has CDI off, and a template cannot add `enable_cdi` to a table of the base template: update to a \
                 release with containerd 2, where CDI is on, and use {}",
                NAMES[0]
            ));
        }
    }
    if let Some(binary) = &options.nvidia_runtime {
        template.add_nvidia(plugin, binary)?;
        if template.has_base {
            notes.push(format!(
                "{} adds the runtime by itself if it finds {NVIDIA}-container-runtime when it starts",
                name(runtime)
            ));
        }
        if options.default {
            template.set_default(runtime, plugin)?;
        } else if template.value(&["plugins", plugin, "containerd"], "default_runtime_name").as_deref() == Some(NVIDIA)
        {
            template.remove(&["plugins", plugin, "containerd"], "default_runtime_name");
        }
    }
    let after: String = template.lines.iter().map(|line| line.text.as_str()).collect();
    Template::parse(&after)?;
    // Without a change there is no need for a template.
    let text = if is_empty && after == start { text.to_owned() } else { after };
    Ok(Change { text, notes })
}

/// The name of the distribution in the names of its files and services.
fn name(runtime: Runtime) -> &'static str {
    if runtime == Runtime::Rke2 { "rke2" } else { "k3s" }
}

/// A table in the template: its header and the lines up to the next header.
struct Block {
    path: Vec<String>,
    header: usize,
    end: usize,
}

/// A line with its line end. An action that contains line ends, such as a comment, does not end the line that it is on.
struct Line {
    text: String,
    /// How many conditions and loops are open at the start of the line.
    depth: usize,
}

/// A template as lines.
struct Template {
    lines: Vec<Line>,
    line_end: &'static str,
    has_base: bool,
    /// Whether k3s' own detection of runtimes is part of the file.
    has_detection: bool,
}

impl Template {
    fn parse(text: &str) -> Result<Self, GpuError> {
        let mut out = Self {
            lines: Vec::new(),
            line_end: if text.contains("\r\n") { "\r\n" } else { "\n" },
            has_base: false,
            has_detection: false,
        };
        let (mut at, mut number, mut depth) = (0, 1, 0);
        while at < text.len() {
            let line = line(&text[at..]).map_err(|reason| invalid(format!("line {number}: {reason}")))?;
            out.lines.push(Line { text: line.text.to_owned(), depth });
            depth = depth
                .checked_add_signed(line.opened)
                .ok_or_else(|| invalid(format!("line {number}: `{{{{ end }}}}` without a beginning")))?;
            out.has_base |= line.actions.iter().any(|body| body.starts_with("template \"base\""));
            out.has_detection |= line.actions.iter().any(|body| body.contains(".ExtraRuntimes"));
            at += line.text.len();
            number += line.text.matches('\n').count();
        }
        if depth > 0 {
            return Err(invalid("a condition or loop of the template is not closed with `{{ end }}`"));
        }
        out.has_detection |= out.has_base;
        Ok(out)
    }

    fn version(&self) -> Option<i64> {
        let first_header = self.blocks().first().map_or(self.lines.len(), |block| block.header);
        let mut settings = self.lines[..first_header].iter().filter_map(|line| setting(&line.text));
        settings.find(|(key, _)| *key == "version")?.1.parse().ok()
    }

    fn blocks(&self) -> Vec<Block> {
        let mut out: Vec<Block> = Vec::new();
        for (number, line) in self.lines.iter().enumerate() {
            if let Some(path) = header(&line.text) {
                if let Some(last) = out.last_mut() {
                    last.end = number;
                }
                out.push(Block { path, header: number, end: self.lines.len() });
            }
        }
        out
    }

    fn block(&self, path: &[&str]) -> Option<Block> {
        self.blocks().into_iter().find(|block| block.path == path)
    }

    /// The settings of a table that do not depend on a condition inside it, as key and line.
    fn settings(&self, path: &[&str]) -> Vec<(String, usize)> {
        let Some(block) = self.block(path) else { return Vec::new() };
        let depth = self.lines[block.header].depth;
        (block.header + 1..block.end)
            .take_while(|number| self.lines[*number].depth >= depth)
            .filter(|number| self.lines[*number].depth == depth)
            .filter_map(|number| Some((setting(&self.lines[number].text)?.0.to_owned(), number)))
            .collect()
    }

    /// The text that a setting has.
    fn value(&self, path: &[&str], key: &str) -> Option<String> {
        let (_, number) = self.settings(path).into_iter().find(|(name, _)| name == key)?;
        Some(setting(&self.lines[number].text)?.1.trim_matches(['"', '\'']).to_owned())
    }

    /// Sets a value in a table of the file. `value` is TOML.
    fn set(&mut self, path: &[&str], key: &str, value: &str) -> Result<(), GpuError> {
        let block = self.block(path).ok_or_else(|| invalid(format!("there is no table [{}]", path.join("."))))?;
        let found = self.settings(path).into_iter().find(|(name, _)| name == key).map(|(_, number)| number);
        if let Some(number) = found {
            let line = &self.lines[number].text;
            let indentation = &line[..line.len() - line.trim_start().len()];
            if setting(line).is_none_or(|(_, old)| old != value) {
                self.lines[number].text = format!("{indentation}{key} = {value}{}", self.line_end);
            }
            return Ok(());
        }
        if self.lines[block.header].depth > 0 && !self.is_ours(&block) {
            return Err(invalid(format!(
                "line {}: the table [{}] depends on a condition of the template; add `{key} = {value}` by hand",
                self.number(block.header),
                path.join(".")
            )));
        }
        let header = &self.lines[block.header].text;
        let indentation = &header[..header.len() - header.trim_start().len()];
        self.insert(block.header + 1, &[format!("{indentation}  {key} = {value}")]);
        Ok(())
    }

    /// Whether a table is under the condition that [`Template::add_nvidia`] writes.
    fn is_ours(&self, block: &Block) -> bool {
        self.lines[block.header].depth == 1
            && self.lines[..block.header].iter().any(|line| line.text.trim() == IF_NOT_DETECTED)
    }

    fn remove(&mut self, path: &[&str], key: &str) {
        if let Some((_, number)) = self.settings(path).into_iter().find(|(name, _)| name == key) {
            self.lines.remove(number);
        }
    }

    /// The number in the file of the first line of `self.lines[index]`.
    fn number(&self, index: usize) -> usize {
        1 + self.lines[..index].iter().map(|line| line.text.matches('\n').count()).sum::<usize>()
    }

    /// Inserts lines, which have no line ends, before the line `at`.
    fn insert(&mut self, at: usize, lines: &[String]) {
        if let Some(last) = self.lines.last_mut().filter(|last| !last.text.ends_with('\n')) {
            last.text.push_str(self.line_end);
        }
        // Every condition is closed at the end of the file.
        let depth = self.lines.get(at).map_or(0, |next| next.depth);
        let new = lines.iter().map(|line| Line { text: format!("{line}{}", self.line_end), depth });
        self.lines.splice(at..at, new);
    }

    /// Adds NVIDIA's runtime with the settings of the default runtime, or updates its path.
    fn add_nvidia(&mut self, plugin: &str, binary: &str) -> Result<(), GpuError> {
        let runtimes = |name| ["plugins", plugin, "containerd", "runtimes", name];
        let shim = |name| ["plugins", plugin, "containerd", "runtimes", name, "options"];
        let default = self.value(&["plugins", plugin, "containerd"], "default_runtime_name").unwrap_or_default();
        let names = [default.as_str(), "runc", "crun"];
        let source = names
            .into_iter()
            .find(|name| !name.is_empty() && !name.starts_with(NVIDIA) && self.block(&runtimes(name)).is_some());
        let lines = |path: &[&str]| -> Vec<(String, String)> {
            let value = |number: usize| setting(&self.lines[number].text).map(|(_, value)| value.to_owned());
            self.settings(path).into_iter().filter_map(|(key, number)| Some((key, value(number)?))).collect()
        };
        let mut settings = source.map(|name| lines(&runtimes(name))).unwrap_or_default();
        if !settings.iter().any(|(key, _)| key == "runtime_type") {
            settings.push(("runtime_type".into(), "\"io.containerd.runc.v2\"".into()));
        }
        let mut options = source.map(|name| lines(&shim(name))).unwrap_or_default();
        options.retain(|(key, _)| key != "BinaryName");
        if source.is_none() && self.has_base {
            let (key, value) = SYSTEMD_CGROUP.split_once(" = ").unwrap_or_default();
            options.push((key.into(), value.into()));
        }
        options.insert(0, ("BinaryName".into(), toml_edit::Value::from(binary).to_string()));
        let write = |(key, value): &(String, String)| format!("  {key} = {value}");
        let heading = |more: &str| format!("[plugins.'{plugin}'.containerd.runtimes.'{NVIDIA}'{more}]");
        if let Some(block) = self.block(&runtimes(NVIDIA)) {
            if self.block(&shim(NVIDIA)).is_none() {
                self.insert(block.end, &[heading(".options")]);
            }
            for (key, value) in options {
                self.set(&shim(NVIDIA), &key, &value)?;
            }
            return Ok(());
        }
        let mut new = vec![String::new()];
        new.extend(self.has_detection.then(|| IF_NOT_DETECTED.to_owned()));
        new.push(heading(""));
        new.extend(settings.iter().map(write));
        new.push(heading(".options"));
        new.extend(options.iter().map(write));
        new.extend(self.has_detection.then(|| "{{ end }}".to_owned()));
        self.insert(self.lines.len(), &new);
        Ok(())
    }

    /// Makes NVIDIA's runtime the default runtime.
    fn set_default(&mut self, runtime: Runtime, plugin: &str) -> Result<(), GpuError> {
        let path = ["plugins", plugin, "containerd"];
        let value = format!("\"{NVIDIA}\"");
        if self.block(&path).is_none() {
            if self.has_base {
                return Err(invalid(format!(
                    "the default runtime is a setting of the base template: leave out --set-default and write `default-runtime: \
                     {NVIDIA}` to /etc/rancher/{}/config.yaml",
                    name(runtime)
                )));
            }
            self.insert(self.lines.len(), &[String::new(), format!("[plugins.'{plugin}'.containerd]")]);
        }
        self.set(&path, "default_runtime_name", &value)
    }
}

/// What is on the first line of a text.
struct ParsedLine<'a> {
    text: &'a str,
    /// The contents of the actions, without comments.
    actions: Vec<&'a str>,
    /// How many more conditions and loops the line opens than it closes.
    opened: isize,
}

/// Parses the first line of a text.
fn line(text: &str) -> Result<ParsedLine<'_>, &'static str> {
    let mut out = ParsedLine { text, actions: Vec::new(), opened: 0 };
    let (mut at, mut is_blank, mut lowest) = (0, true, 0);
    loop {
        let plain = &text[at..];
        let action = plain.find("{{").unwrap_or(plain.len());
        if let Some(end) = plain[..action].find('\n') {
            out.text = &text[..=at + end];
            is_blank &= plain[..end].trim().is_empty();
            break;
        }
        is_blank &= plain[..action].trim().is_empty();
        let start = at + action;
        if start == text.len() {
            break;
        }
        let length = text[start..].find("}}").ok_or("an action `{{` is not closed")?;
        let body = text[start + 2..start + length].trim_start_matches('-').trim_end_matches('-').trim();
        if !body.starts_with("/*") {
            out.actions.push(body);
            match body.split_whitespace().next() {
                Some("if" | "range" | "with" | "define" | "block") => out.opened += 1,
                Some("end") => out.opened -= 1,
                _ => {}
            }
            lowest = lowest.min(out.opened);
        }
        at = start + length + 2;
    }
    // Otherwise it would depend on the position in the line whether the table or the setting is under the condition.
    if !is_blank && (out.opened != 0 || lowest < 0) {
        return Err(
            "the beginning or the `{{ end }}` of a condition shares its line with other text; give it a line of its own",
        );
    }
    Ok(out)
}

/// The path of a table header such as `[plugins."a.b".c]`.
fn header(line: &str) -> Option<Vec<String>> {
    let inner = line.trim_start().strip_prefix('[').filter(|rest| !rest.starts_with('['))?;
    let keys = Key::parse(&inner[..end_of_header(inner)?]).ok()?;
    Some(keys.iter().map(|key| key.get().to_owned()).collect())
}

/// The position of the first closing bracket that is not part of a quoted key (TOML v1.0.0, "Keys").
fn end_of_header(inner: &str) -> Option<usize> {
    let mut quote = None;
    let mut is_escaped = false;
    inner.bytes().position(|byte| {
        match (quote, byte) {
            _ if is_escaped => is_escaped = false,
            (Some(b'"'), b'\\') => is_escaped = true,
            (Some(open), _) if open == byte => quote = None,
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b']') => return true,
            _ => {}
        }
        false
    })
}

/// The key and the value of a line `key = value`, without a comment.
fn setting(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once('=')?;
    let key = key.trim();
    let is_bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let value = value.trim();
    let is_text = value.starts_with(['"', '\'']);
    let value = if is_text { value } else { value.split('#').next().unwrap_or_default().trim() };
    is_bare.then_some((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NVIDIA_RUNTIME: &str = "/usr/bin/nvidia-container-runtime";

    fn edited(file: &str, text: &str, default: bool) -> Result<Change, GpuError> {
        let options = Options { nvidia_runtime: Some(NVIDIA_RUNTIME.into()), default };
        let change = edit(Runtime::K3s, Path::new(file), text, &options)?;
        assert_eq!(edit(Runtime::K3s, Path::new(file), &change.text, &options)?.text, change.text, "idempotent");
        Ok(change)
    }

    #[test]
    fn the_base_template_is_extended_unless_k3s_detects_the_runtime() {
        let expected = "{{ template \"base\" . }}\n\n{{ if not (index .ExtraRuntimes \"nvidia\").RuntimeType }}\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'nvidia']\n  runtime_type = \"io.containerd.runc.v2\"\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'nvidia'.options]\n  BinaryName = \"/usr/bin/nvidia-container-runtime\"\n  SystemdCgroup = {{ .SystemdCgroup }}\n{{ end }}\n";
        assert_eq!(edited("config-v3.toml.tmpl", "", false).unwrap().text, expected);
        assert_eq!(edited("config-v3.toml.tmpl", "{{ template \"base\" . }}", false).unwrap().text, expected);
        let crlf = edited("config-v3.toml.tmpl", "{{ template \"base\" . }}\r\n", false).unwrap().text;
        assert_eq!(crlf, expected.replace('\n', "\r\n"));
        let old = edited("config.toml.tmpl", "{{ template \"base\" . }}\n", false).unwrap();
        assert!(
            old.text.contains("[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.'nvidia']"),
            "{}",
            old.text
        );
        assert!(old.notes.iter().any(|note| note.contains("CDI off")), "{:?}", old.notes);
        let error = edited("config-v3.toml.tmpl", "", true).err().unwrap().to_string();
        assert!(error.contains("default-runtime: nvidia") && error.contains("/etc/rancher/k3s/config.yaml"), "{error}");
        let cdi = Options { nvidia_runtime: None, default: false };
        assert_eq!(edit(Runtime::Rke2, Path::new("config-v3.toml.tmpl"), "", &cdi).unwrap().text, "");
    }

    #[test]
    fn a_complete_template_keeps_its_structure() {
        let text = "# ours\nversion = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  enable_selinux = {{ .NodeConfig.SELinux }}\n{{- if .DisableCgroup}}\n  disable_cgroup = true\n{{end}}\n\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  default_runtime_name = \"runc\" # yes\n\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n\tSystemdCgroup = {{ .SystemdCgroup }}\n{{ if .X }}\n  Other = 1\n{{ end }}\n";
        let after = edited("config.toml.tmpl", text, true).unwrap().text;
        let expected = text
            .replace("cri\"]\n", "cri\"]\n  enable_cdi = true\n")
            .replace("default_runtime_name = \"runc\" # yes", "default_runtime_name = \"nvidia\"");
        let block = "\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.'nvidia']\n  runtime_type = \"io.containerd.runc.v2\"\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.'nvidia'.options]\n  BinaryName = \"/usr/bin/nvidia-container-runtime\"\n  SystemdCgroup = {{ .SystemdCgroup }}\n";
        assert_eq!(after, expected + block);
    }

    #[test]
    fn an_existing_runtime_is_updated_in_place() {
        let text = "{{ template \"base\" . }}\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.nvidia]\n  runtime_type = \"io.containerd.runc.v2\"\n  [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.nvidia.options]\n    BinaryName = \"/old\"\n# end\n";
        let after = edited("config-v3.toml.tmpl", text, false).unwrap().text;
        assert!(after.contains("    BinaryName = \"/usr/bin/nvidia-container-runtime\"\n"), "{after}");
        assert!(after.contains("    SystemdCgroup = {{ .SystemdCgroup }}\n"), "{after}");
        assert!(after.ends_with("# end\n") && after.matches("runtimes.nvidia").count() == 2, "{after}");
    }

    #[test]
    fn comments_and_values_may_contain_anything() {
        let text = "{{/*\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia]\n*/}}\nversion = 3\nroot = {{ if .X }}\"a\"{{ else }}\"b\"{{ end }}\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\n";
        let after = edited("config-v3.toml.tmpl", text, true).unwrap().text;
        let block = "\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'nvidia']\n  runtime_type = \"io.containerd.runc.v2\"\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'nvidia'.options]\n  BinaryName = \"/usr/bin/nvidia-container-runtime\"\n";
        assert_eq!(after, format!("{text}  default_runtime_name = \"nvidia\"\n{block}"));
    }

    #[test]
    fn tables_are_added_after_a_condition_at_the_end() {
        let text = "version = 3\n{{ if .X }}\nroot = 1\n{{ end }}";
        let after = edited("config-v3.toml.tmpl", text, true).unwrap().text;
        let table = "[plugins.'io.containerd.cri.v1.runtime'.containerd]\n  default_runtime_name = \"nvidia\"\n";
        assert!(after.starts_with(&format!("{text}\n")) && after.ends_with(table), "{after}");
    }

    #[test]
    fn headers_end_at_the_first_bracket_outside_of_quotes() {
        let cases: [(&str, Option<&[&str]>); 7] = [
            ("[a.b] # ]", Some(&["a", "b"])),
            ("  [ plugins.'a]b'.\"c\\\"]d\" ]", Some(&["plugins", "a]b", "c\"]d"])),
            ("[[a]]", None),
            ("[a", None),
            ("['a]", None),
            ("[]", None),
            ("a]", None),
        ];
        for (line, path) in cases {
            assert_eq!(header(line), path.map(|path| path.iter().map(|&key| key.to_owned()).collect()), "{line}");
        }
    }

    #[test]
    fn broken_templates_are_rejected_with_their_line() {
        for (text, reason) in [
            ("{{ if .X }}\nversion = 3\n", "not closed with"),
            ("version = 3\n{{ end }}\n\n", "without a beginning"),
            ("version = 3\n{{ template \"base\" .\n", "line 2: an action"),
            ("{{/* two\nlines */}}\n[a]{{ if .X }}\n{{ end }}\n", "line 3: the beginning"),
            ("{{ if .X }}\nx = 1 {{ end }}{{ if .X }}\n{{ end }}\n", "line 2: the beginning"),
        ] {
            let error = edited("config-v3.toml.tmpl", text, false).err().unwrap().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let conditional = "version = 3\n{{ if .X }}\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\n  snapshotter = \"x\"\n{{ end }}\n";
        let error = edited("config-v3.toml.tmpl", conditional, true).err().unwrap().to_string();
        assert!(error.contains("line 3") && error.contains("by hand"), "{error}");
    }
}
