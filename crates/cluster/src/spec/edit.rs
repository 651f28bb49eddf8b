//! Changes single values in the text of `cluster.yaml`. The rest of the text stays as it is, including comments.

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::Cluster;

#[derive(Deserialize)]
struct File {
    spec: Parts,
}

#[derive(Deserialize)]
struct Parts {
    kubernetes: Kubernetes,
    #[serde(default)]
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Kubernetes {
    channel: Option<Spanned<String>>,
    version: Option<Spanned<String>>,
}

#[derive(Deserialize)]
struct Group {
    name: String,
    count: Spanned<u32>,
}

fn read(text: &str) -> Result<Parts, String> {
    let file: File = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    Ok(file.spec)
}

/// Replaces a value in the text. The new text is parsed, and the caller checks that it has the intended value.
fn replace_value<T>(text: &str, old_value: &Spanned<T>, value: &str) -> Result<(String, Cluster), String> {
    let span = old_value.defined.span();
    let error = || "the value cannot be changed automatically; edit the file by hand".to_owned();
    let (from, length) = span.byte_offset().zip(span.byte_len()).ok_or_else(error)?;
    let (from, length) = (usize::try_from(from).unwrap_or(usize::MAX), usize::try_from(length).unwrap_or(usize::MAX));
    let old = text.get(from..from.saturating_add(length)).ok_or_else(error)?;
    // The span of a scalar may include the white space that follows it on its line.
    let trimmed_length = old.trim_end().len();
    let new = format!("{}{value}{}", &text[..from], &text[from + trimmed_length..]);
    let cluster = Cluster::parse(&new)?;
    Ok((new, cluster))
}

/// Changes `spec.kubernetes.channel`, or `version` for a distribution without channels. Returns the new text and its cluster.
///
/// # Errors
/// When the file or the channel is not valid.
pub fn channel(text: &str, channel: &str) -> Result<(String, Cluster), String> {
    let Kubernetes { channel: old_channel, version } = read(text)?.kubernetes;
    let old = old_channel.or(version).ok_or("spec.kubernetes has neither a channel nor a version")?;
    let (new, cluster) = replace_value(text, &old, channel)?;
    if cluster.spec.kubernetes.release() != channel {
        return Err("the channel cannot be changed automatically; edit the file by hand".into());
    }
    Ok((new, cluster))
}

/// Changes the number of machines of a group. Returns the new text and its cluster.
///
/// # Errors
/// When the file is not valid, or has no such group.
pub fn count(text: &str, group: &str, count: u32) -> Result<(String, Cluster), String> {
    let groups = read(text)?.groups;
    let found = groups.iter().find(|g| g.name == group).ok_or_else(|| {
        let all: Vec<&str> = groups.iter().map(|g| g.name.as_str()).collect();
        format!("there is no group '{group}'; the groups are: {}", all.join(", "))
    })?;
    let (new, cluster) = replace_value(text, &found.count, &count.to_string())?;
    if cluster.spec.groups.iter().find(|g| g.name == group).is_none_or(|g| g.count != count) {
        return Err("the count cannot be changed automatically; edit the file by hand".into());
    }
    Ok((new, cluster))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    #[test]
    fn value_is_replaced_and_the_rest_of_the_text_is_kept() {
        let groups = "spec:\n  providers: {d: {digitalocean: {token: {env: T}, region: r, sshKeys: []}}}\n  groups:\n    - name: gpu # ours\n      count: 2   # two\n      provider: d\n      size: s\n      image: i\n      roles: [worker]";
        let text = FILE.replace("spec:", groups);
        let (new, cluster) = count(&text, "gpu", 12).unwrap();
        assert_eq!(new, text.replace("count: 2 ", "count: 12 "));
        assert_eq!(cluster.spec.groups[0].count, 12);
        let (new, _) = channel(&text, "1.33/stable").unwrap();
        assert_eq!(new, text.replace("1.32/stable", "1.33/stable"));
        assert!(channel(&text, "latest").unwrap_err().contains("write the minor version"));
        assert!(count(&text, "cpu", 1).unwrap_err().contains("the groups are: gpu"));
        let quoted = text.replace("channel: 1.32/stable", "channel: \"1.32/stable\"");
        let k3s = FILE.replace(
            "distribution: microk8s, channel: 1.32/stable, addons: [dns, metrics-server]",
            "distribution: k3s, version: v1.35.1+k3s1",
        );
        assert_eq!(channel(&k3s, "v1.36.2+k3s1").unwrap().0, k3s.replace("v1.35.1", "v1.36.2"));
        assert!(channel(&quoted, "1.33/stable").unwrap().0.contains("channel: 1.33/stable,"));
    }
}
