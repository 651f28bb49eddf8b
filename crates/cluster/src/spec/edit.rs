//! Single values of the file changed where they stand; comments and order stay.

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
    channel: Spanned<String>,
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

/// The text with another value in this place; it is read again, so that nothing else became of it.
fn put<T>(text: &str, place: &Spanned<T>, value: &str) -> Result<(String, Cluster), String> {
    let span = place.defined.span();
    let by_hand = || "the value cannot be changed in its place; change the file by hand".to_owned();
    let (from, length) = span.byte_offset().zip(span.byte_len()).ok_or_else(by_hand)?;
    let (from, length) = (usize::try_from(from).unwrap_or(usize::MAX), usize::try_from(length).unwrap_or(usize::MAX));
    let old = text.get(from..from.saturating_add(length)).ok_or_else(by_hand)?;
    // A scalar's place may reach over what follows it on its line.
    let bare = old.trim_end().len();
    let new = format!("{}{value}{}", &text[..from], &text[from + bare..]);
    let cluster = Cluster::parse(&new)?;
    Ok((new, cluster))
}

/// With another channel of Kubernetes.
///
/// # Errors
/// When the file cannot be read, or the channel is none.
pub fn channel(text: &str, channel: &str) -> Result<(String, Cluster), String> {
    let (new, cluster) = put(text, &read(text)?.kubernetes.channel, channel)?;
    if cluster.spec.kubernetes.channel != channel {
        return Err("the channel cannot be changed in its place; change the file by hand".into());
    }
    Ok((new, cluster))
}

/// With another number of machines in a group.
///
/// # Errors
/// When the file cannot be read, or has no such group.
pub fn count(text: &str, group: &str, count: u32) -> Result<(String, Cluster), String> {
    let groups = read(text)?.groups;
    let found = groups.iter().find(|g| g.name == group).ok_or_else(|| {
        let all: Vec<&str> = groups.iter().map(|g| g.name.as_str()).collect();
        format!("there is no group '{group}'; there are: {}", all.join(", "))
    })?;
    let (new, cluster) = put(text, &found.count, &count.to_string())?;
    if cluster.spec.groups.iter().find(|g| g.name == group).is_none_or(|g| g.count != count) {
        return Err("the count cannot be changed in its place; change the file by hand".into());
    }
    Ok((new, cluster))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    #[test]
    fn a_value_changes_and_all_else_stays() {
        let groups = "spec:\n  providers: {d: {digitalocean: {token: {env: T}, region: r, sshKeys: []}}}\n  groups:\n    - name: gpu # ours\n      count: 2   # two\n      provider: d\n      size: s\n      image: i\n      roles: [worker]";
        let text = FILE.replace("spec:", groups);
        let (new, cluster) = count(&text, "gpu", 12).unwrap();
        assert_eq!(new, text.replace("count: 2 ", "count: 12 "));
        assert_eq!(cluster.spec.groups[0].count, 12);
        let (new, _) = channel(&text, "1.33/stable").unwrap();
        assert_eq!(new, text.replace("1.32/stable", "1.33/stable"));
        assert!(channel(&text, "latest").unwrap_err().contains("write the minor version"));
        assert!(count(&text, "cpu", 1).unwrap_err().contains("there are: gpu"));
        let quoted = text.replace("channel: 1.32/stable", "channel: \"1.32/stable\"");
        assert!(channel(&quoted, "1.33/stable").unwrap().0.contains("channel: 1.33/stable,"));
    }
}
