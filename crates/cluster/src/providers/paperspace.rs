//! Client of Paperspace's API for machines.
//!
//! Source: Paperspace API v1, "Machines" (list, create, get, start, stop, delete), "Pagination". The older API ended in July 2024.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};
use slipway_core::clock::parse_rfc3339;

use super::http::Http;
use super::{Instance, Power, Provider, ProviderFuture, Size, SizeGpus, identifier, ip_address};
use crate::ClusterError;
use crate::spec::cloud::{self, Group};

/// Maximum number of items per page that the API allows.
const PER_PAGE: u32 = 120;
/// The smallest disk of Paperspace's templates.
const DEFAULT_DISK_GIB: u32 = 50;

#[derive(Debug)]
pub(super) struct Paperspace {
    http: Http,
    account: cloud::Paperspace,
}

impl Paperspace {
    pub(super) fn new(name: &str, account: &cloud::Paperspace, token: &str) -> Result<Self, ClusterError> {
        Ok(Self { http: Http::new(name, &account.endpoint, token)?, account: account.clone() })
    }
}

/// The path of the next page, which begins after the machine `nextPage`.
fn next(page: &Value) -> Option<String> {
    let more = page["hasMore"].as_bool().unwrap_or(false);
    let after = page["nextPage"].as_str().filter(|_| more)?;
    Some(format!("/v1/machines?limit={PER_PAGE}&after={after}"))
}

fn instance(machine: &Value) -> Result<Instance, String> {
    let text = |field: &str| machine[field].as_str().filter(|t| !t.is_empty()).map(str::to_owned);
    Ok(Instance {
        id: identifier(text("id").unwrap_or_default())?,
        name: text("name").unwrap_or_default(),
        size: text("machineType").unwrap_or_default(),
        power: match machine["state"].as_str() {
            // `serviceready`: the machine is up, but Paperspace's own agent on it is not ready yet.
            Some("ready" | "serviceready") => Power::On,
            Some("off") => Power::Off,
            // `provisioning`, `starting`, `stopping`, `restarting`, `upgrading`
            _ => Power::Transitioning,
        },
        address: ip_address(text("publicIp").or_else(|| text("publicIpAddress")).as_deref())?,
        internal: ip_address(text("privateIp").or_else(|| text("privateIpAddress")).as_deref())?,
        hourly: machine["usageRate"].as_f64(),
        created_ms: text("dtCreated").as_deref().and_then(parse_rfc3339),
    })
}

impl Paperspace {
    fn read(&self, machine: &Value) -> Result<Instance, ClusterError> {
        instance(machine).map_err(|reason| self.http.error(200, reason))
    }
}

impl Provider for Paperspace {
    fn list(&self) -> ProviderFuture<'_, Vec<Instance>> {
        Box::pin(async {
            let machines = self.http.pages(format!("/v1/machines?limit={PER_PAGE}"), "items", next).await?;
            machines.iter().map(|m| self.read(m)).collect()
        })
    }

    fn get<'a>(&'a self, id: &'a str) -> ProviderFuture<'a, Option<Instance>> {
        Box::pin(async move {
            let found = self.http.call(Method::GET, &format!("/v1/machines/{id}"), None).await?;
            found.map(|f| self.read(&f)).transpose()
        })
    }

    fn create<'a>(&'a self, name: &'a str, _cluster: &'a str, group: &'a Group) -> ProviderFuture<'a, Instance> {
        Box::pin(async move {
            let mut body = json!({
                "name": name,
                "machineType": group.size,
                "templateId": group.image,
                "region": self.account.region,
                "diskSize": group.disk_gib.unwrap_or(DEFAULT_DISK_GIB),
                // A dynamic address costs nothing while the machine is off, and changes with every power-on.
                "publicIpType": "dynamic",
                "startOnCreate": true,
            });
            if let Some(network) = &self.account.network {
                body["networkId"] = json!(network);
            }
            let created = self.http.call_existing(Method::POST, "/v1/machines", Some(&body)).await?;
            self.read(&created["data"])
        })
    }

    fn power<'a>(&'a self, id: &'a str, on: bool) -> ProviderFuture<'a, ()> {
        Box::pin(async move {
            let path = format!("/v1/machines/{id}/{}", if on { "start" } else { "stop" });
            self.http.call_existing(Method::PATCH, &path, None).await.map(drop)
        })
    }

    fn delete<'a>(&'a self, id: &'a str) -> ProviderFuture<'a, ()> {
        Box::pin(async move { self.http.call(Method::DELETE, &format!("/v1/machines/{id}"), None).await.map(drop) })
    }

    fn sizes(&self) -> ProviderFuture<'_, BTreeMap<String, Size>> {
        // The API has no price list; the price is part of each machine.
        Box::pin(async { Ok(BTreeMap::new()) })
    }

    fn gpus_by_name(&self, size: &str) -> Option<SizeGpus> {
        gpus(size)
    }

    fn charges_when_off(&self) -> bool {
        false
    }
}

/// The GPUs of a machine type: `A4000` has one, `A100-80Gx8` eight. Types without a GPU, such as `C5`, start with `C` or `Air`.
fn gpus(machine_type: &str) -> Option<SizeGpus> {
    if machine_type.starts_with(['C', 'c']) || machine_type.starts_with("Air") {
        return None;
    }
    let parsed = machine_type.rsplit_once('x').and_then(|(model, count)| Some((model, count.parse().ok()?)));
    let (model, count) = parsed.unwrap_or((machine_type, 1));
    (!model.is_empty() && count > 0).then(|| SizeGpus { model: model.replace("80G", "80GB"), count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_name_their_gpus() {
        let found = |name: &str| gpus(name).map(|g| (g.model, g.count));
        assert_eq!(found("A4000"), Some(("A4000".into(), 1)));
        assert_eq!(found("A100-80Gx8"), Some(("A100-80GB".into(), 8)));
        assert_eq!((found("C5"), found("Air")), (None, None));
    }

    #[test]
    fn machine_is_parsed_and_validated() {
        let machine = json!({
            "id": "psbtuwfvt", "name": "lab-gpu-1", "state": "ready", "machineType": "A4000", "publicIp": "192.0.2.7",
            "privateIp": "10.64.24.2", "usageRate": 0.76, "dtCreated": "2020-07-21T16:26:43.000Z",
        });
        let read = instance(&machine).unwrap();
        assert_eq!((read.power, read.hourly, read.address.as_deref()), (Power::On, Some(0.76), Some("192.0.2.7")));
        assert_eq!(read.created_ms, Some(1_595_348_803_000));
        let new = json!({"id": "psbtuwfvt", "state": "provisioning", "publicIp": null, "privateIp": ""});
        let new = instance(&new).unwrap();
        assert_eq!((new.power, new.address, new.internal), (Power::Transitioning, None, None));
        for (field, invalid) in
            [("publicIp", "-oProxyCommand=id"), ("privateIp", "a.example"), ("id", "../teams"), ("id", "")]
        {
            let mut other = machine.clone();
            other[field] = json!(invalid);
            assert!(instance(&other).is_err(), "{field} {invalid}");
        }
        assert_eq!(
            next(&json!({"hasMore": true, "nextPage": "abc"})).as_deref(),
            Some("/v1/machines?limit=120&after=abc")
        );
        assert_eq!(next(&json!({"hasMore": false, "nextPage": "abc"})), None);
    }
}
