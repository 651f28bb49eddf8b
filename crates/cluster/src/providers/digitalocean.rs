//! Client of DigitalOcean's API for droplets.
//!
//! Source: DigitalOcean API 2.0, "Droplets", "Droplet Actions", "Sizes", "Rate Limit", "Links & Pagination".

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};
use slipway_core::clock::parse_rfc3339;

use super::http::Http;
use super::{Instance, Power, Provider, ProviderFuture, Size, SizeGpus, identifier, ip_address};
use crate::ClusterError;
use crate::spec::cloud::{self, Group};

/// Maximum number of items per page that the API allows.
const PER_PAGE: u32 = 200;

#[derive(Debug)]
pub(super) struct DigitalOcean {
    http: Http,
    account: cloud::DigitalOcean,
}

impl DigitalOcean {
    pub(super) fn new(name: &str, account: &cloud::DigitalOcean, token: &str) -> Result<Self, ClusterError> {
        Ok(Self { http: Http::new(name, &account.endpoint, token)?, account: account.clone() })
    }
}

/// The path and query of `links.pages.next`.
fn next(page: &Value) -> Option<String> {
    let url = page["links"]["pages"]["next"].as_str()?;
    url.find("/v2/").map(|at| url[at..].to_owned())
}

fn instance(droplet: &Value) -> Result<Instance, String> {
    let address = |kind: &str| {
        let mut all = droplet["networks"]["v4"].as_array().into_iter().flatten();
        ip_address(all.find(|n| n["type"] == kind).and_then(|n| n["ip_address"].as_str()))
    };
    Ok(Instance {
        id: identifier(droplet["id"].as_u64().map(|id| id.to_string()).unwrap_or_default())?,
        name: droplet["name"].as_str().unwrap_or_default().to_owned(),
        size: droplet["size_slug"].as_str().unwrap_or_default().to_owned(),
        power: match droplet["status"].as_str() {
            Some("active") => Power::On,
            Some("off") => Power::Off,
            // `new`, `archive`
            _ => Power::Transitioning,
        },
        address: address("public")?,
        internal: address("private")?,
        hourly: droplet["size"]["price_hourly"].as_f64(),
        created_ms: droplet["created_at"].as_str().and_then(parse_rfc3339),
    })
}

/// Name and price of a size. `gpu_info.model` is such as `nvidia_h100`.
fn size(size: &Value) -> Option<(String, Size)> {
    let gpus = &size["gpu_info"];
    let count = gpus["count"].as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    let gpus =
        count.zip(gpus["model"].as_str()).map(|(count, model)| SizeGpus { model: model.replace('_', " "), count });
    Some((size["slug"].as_str()?.to_owned(), Size { hourly: size["price_hourly"].as_f64()?, gpus }))
}

impl DigitalOcean {
    fn read(&self, droplet: &Value) -> Result<Instance, ClusterError> {
        instance(droplet).map_err(|reason| self.http.error(200, reason))
    }
}

impl Provider for DigitalOcean {
    fn list(&self) -> ProviderFuture<'_, Vec<Instance>> {
        Box::pin(async {
            let droplets =
                self.http.pages(format!("/v2/droplets?page=1&per_page={PER_PAGE}"), "droplets", next).await?;
            droplets.iter().map(|d| self.read(d)).collect()
        })
    }

    fn get<'a>(&'a self, id: &'a str) -> ProviderFuture<'a, Option<Instance>> {
        Box::pin(async move {
            let found = self.http.call(Method::GET, &format!("/v2/droplets/{id}"), None).await?;
            found.map(|f| self.read(&f["droplet"])).transpose()
        })
    }

    fn create<'a>(&'a self, name: &'a str, cluster: &'a str, group: &'a Group) -> ProviderFuture<'a, Instance> {
        Box::pin(async move {
            // The API takes the identifier of an SSH key as a number, and its fingerprint as a string.
            let key = |key: &String| key.parse::<u64>().map_or_else(|_| json!(key), |id| json!(id));
            let mut body = json!({
                "name": name,
                "region": self.account.region,
                "size": group.size,
                "image": group.image,
                "ssh_keys": self.account.ssh_keys.iter().map(key).collect::<Vec<_>>(),
                "tags": ["slipway", format!("slipway:{cluster}")],
            });
            if let Some(vpc) = &self.account.vpc {
                body["vpc_uuid"] = json!(vpc);
            }
            let created = self.http.call_existing(Method::POST, "/v2/droplets", Some(&body)).await?;
            self.read(&created["droplet"])
        })
    }

    fn power<'a>(&'a self, id: &'a str, on: bool) -> ProviderFuture<'a, ()> {
        Box::pin(async move {
            // `shutdown` lets the operating system shut down, unlike `power_off`. Kubernetes was stopped before.
            let kind = if on { "power_on" } else { "shutdown" };
            let path = format!("/v2/droplets/{id}/actions");
            self.http.call_existing(Method::POST, &path, Some(&json!({"type": kind}))).await.map(drop)
        })
    }

    fn delete<'a>(&'a self, id: &'a str) -> ProviderFuture<'a, ()> {
        Box::pin(async move { self.http.call(Method::DELETE, &format!("/v2/droplets/{id}"), None).await.map(drop) })
    }

    fn sizes(&self) -> ProviderFuture<'_, BTreeMap<String, Size>> {
        Box::pin(async {
            let sizes = self.http.pages(format!("/v2/sizes?page=1&per_page={PER_PAGE}"), "sizes", next).await?;
            Ok(sizes.iter().filter_map(size).collect())
        })
    }

    fn gpus_by_name(&self, _: &str) -> Option<SizeGpus> {
        None
    }

    fn charges_when_off(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_their_gpus() {
        let h100 = json!({"slug": "gpu-h100x8-640gb", "price_hourly": 23.92,
            "gpu_info": {"count": 8, "model": "nvidia_h100", "vram": {"amount": 640, "unit": "gib"}}});
        let gpus = SizeGpus { model: "nvidia h100".into(), count: 8 };
        assert_eq!(size(&h100), Some(("gpu-h100x8-640gb".into(), Size { hourly: 23.92, gpus: Some(gpus) })));
        let plain = json!({"slug": "s-1vcpu-1gb", "price_hourly": 0.00893});
        assert_eq!(size(&plain), Some(("s-1vcpu-1gb".into(), Size { hourly: 0.00893, gpus: None })));
    }

    #[test]
    fn droplet_is_parsed_and_validated() {
        let droplet = json!({
            "id": 3_164_444, "name": "lab-gpu-1", "status": "active", "size_slug": "gpu-h100x1-80gb", "size": {"price_hourly": 3.39},
            "created_at": "2020-07-21T16:26:43Z",
            "networks": {"v4": [{"ip_address": "10.128.192.124", "type": "private"}, {"ip_address": "192.0.2.21", "type": "public"}]},
        });
        let read = instance(&droplet).unwrap();
        assert_eq!((read.id.as_str(), read.power), ("3164444", Power::On));
        assert_eq!((read.address.as_deref(), read.internal.as_deref()), (Some("192.0.2.21"), Some("10.128.192.124")));
        assert_eq!(read.created_ms, Some(1_595_348_803_000));
        for (pointer, invalid) in
            [("/networks/v4/1/ip_address", "-oProxyCommand=id"), ("/networks/v4/0/ip_address", "a.example")]
        {
            let mut other = droplet.clone();
            *other.pointer_mut(pointer).unwrap() = json!(invalid);
            assert!(instance(&other).unwrap_err().contains("not an IP address"), "{invalid}");
        }
        assert!(instance(&json!({"name": "no identifier"})).is_err());
        let page =
            json!({"links": {"pages": {"next": "https://api.digitalocean.com/v2/droplets?page=2&per_page=200"}}});
        assert_eq!(next(&page).as_deref(), Some("/v2/droplets?page=2&per_page=200"));
        assert_eq!(next(&json!({"links": {"pages": {}}})), None);
    }
}
