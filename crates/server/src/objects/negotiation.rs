//! Which representation of an object a client prefers (RFC 9110, section 12.5.1). JSON and YAML are served; their parameters select tables
//! and metadata. Clients that prefer protobuf accept JSON too.

use axum::http::{HeaderMap, header};

/// The media type of YAML.
pub(super) const YAML: &str = "application/yaml";

/// A representation of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Representation {
    /// The objects themselves.
    Object,
    /// A table for people.
    Table,
    /// Only their metadata.
    Metadata,
    /// Aggregated discovery.
    Discovery,
}

/// The format of a representation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Yaml,
}

/// The representations that a client accepts, in its order.
fn accepted(headers: &HeaderMap) -> impl Iterator<Item = (Format, Representation)> + use<> {
    let mut all = Vec::new();
    for value in headers.get_all(header::ACCEPT) {
        for media in value.to_str().unwrap_or_default().split(',') {
            let mut parts = media.split(';').map(str::trim);
            let format = match parts.next().unwrap_or_default() {
                "application/json" | "application/*" | "*/*" => Format::Json,
                YAML => Format::Yaml,
                _ => continue,
            };
            let representation = match parts.find_map(|part| part.strip_prefix("as=")) {
                None => Representation::Object,
                Some("Table") => Representation::Table,
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Representation::Metadata,
                // Version 2 is stable; of version 2beta1 the form differs.
                Some("APIGroupDiscoveryList") if media.split(';').any(|part| part.trim() == "v=v2") => {
                    Representation::Discovery
                }
                Some(_) => continue,
            };
            all.push((format, representation));
        }
    }
    all.into_iter()
}

/// Whether a client prefers YAML.
pub(super) fn prefers_yaml(headers: &HeaderMap) -> bool {
    accepted(headers).next().is_some_and(|(format, _)| format == Format::Yaml)
}

/// The first of these representations that the client accepts; `None` if it accepts none of them. Without an `Accept` header, it
/// accepts all.
pub(super) fn negotiate(headers: &HeaderMap, offered: &[Representation]) -> Option<Representation> {
    if !headers.contains_key(header::ACCEPT) {
        return Some(Representation::Object);
    }
    accepted(headers).map(|(_, representation)| representation).find(|representation| offered.contains(representation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_accepted_representation_that_is_offered_is_chosen() {
        use Representation::{Discovery, Metadata, Object, Table};
        let offered = [Object, Table, Metadata];
        for (accept, expected) in [
            ("application/json", Some(Object)),
            ("*/*", Some(Object)),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Some(Table)),
            ("application/vnd.kubernetes.protobuf,application/json", Some(Object)),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Some(Metadata)),
            ("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json", Some(Object)),
            ("application/vnd.kubernetes.protobuf", None),
            ("application/yaml;as=Table;v=v1;g=meta.k8s.io", Some(Table)),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            assert_eq!(negotiate(&headers, &offered), expected, "{accept}");
        }
        assert_eq!(negotiate(&HeaderMap::new(), &offered), Some(Object));
        for (accept, expected) in [
            ("application/yaml", true),
            ("application/yaml,application/json", true),
            ("application/json,application/yaml", false),
            ("application/vnd.kubernetes.protobuf, application/yaml", true),
        ] {
            assert_eq!(prefers_yaml(&HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())])), expected);
        }
        let discovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let headers = HeaderMap::from_iter([(header::ACCEPT, discovery.parse().unwrap())]);
        assert_eq!(negotiate(&headers, &[Object, Discovery]), Some(Discovery));
    }
}
