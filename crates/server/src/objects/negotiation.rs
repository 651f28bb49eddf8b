//! Which representation of an object a client prefers (RFC 9110, section 12.5.1). Only JSON is served; its parameters select tables and
//! metadata.

use axum::http::{HeaderMap, header};

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

/// The representations that a client accepts, in its order.
fn accepted(headers: &HeaderMap) -> impl Iterator<Item = Representation> + use<> {
    let mut all = Vec::new();
    for value in headers.get_all(header::ACCEPT) {
        for media in value.to_str().unwrap_or_default().split(',') {
            let mut parts = media.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            if !matches!(kind, "application/json" | "application/*" | "*/*") {
                continue;
            }
            let parameter = parts.find_map(|part| part.strip_prefix("as="));
            match parameter {
                None => all.push(Representation::Object),
                Some("Table") => all.push(Representation::Table),
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => all.push(Representation::Metadata),
                // Version 2 is stable; of version 2beta1 the form differs.
                Some("APIGroupDiscoveryList") if media.split(';').any(|part| part.trim() == "v=v2") => {
                    all.push(Representation::Discovery);
                }
                Some(_) => {}
            }
        }
    }
    all.into_iter()
}

/// The first of these representations that the client accepts; `None` if it accepts none of them. Without an `Accept` header, it
/// accepts all.
pub(super) fn negotiate(headers: &HeaderMap, offered: &[Representation]) -> Option<Representation> {
    if !headers.contains_key(header::ACCEPT) {
        return Some(Representation::Object);
    }
    accepted(headers).find(|representation| offered.contains(representation))
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
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            assert_eq!(negotiate(&headers, &offered), expected, "{accept}");
        }
        assert_eq!(negotiate(&HeaderMap::new(), &offered), Some(Object));
        let discovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let headers = HeaderMap::from_iter([(header::ACCEPT, discovery.parse().unwrap())]);
        assert_eq!(negotiate(&headers, &[Object, Discovery]), Some(Discovery));
    }
}
