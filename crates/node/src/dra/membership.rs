//! The ComputeDomain that this node belongs to. A node joins the domain of the first claim for a channel that is prepared on it, and leaves
//! it after the last one was released; it is in one domain at a time.
//!
//! The prepared claims are recorded in the database. From them, one task derives everything else: the label and annotation of the Node, by
//! which the controller lists it in the domain's status, and the IMEX daemon with the peers of that status. So an agent that is killed
//! continues where it was.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use slipway_core::compute_domain::{LABEL, MAX_NODES_PER_CLIQUE, MEMBER_ANNOTATION, Member};
use slipway_store::Database;
use tokio::sync::{Notify, watch};

use super::channels;
use crate::NodeError;
use crate::cluster::{COMPUTE_DOMAIN, Cluster, NODE, RESOURCE_CLAIM};
use crate::driver::Driver;
use crate::imex::{self, Imex, Peers};
use crate::repo::{self, DomainClaim};

/// Field manager of the label and the annotation.
const MANAGER: &str = "slipway-node-domain";
/// Poll interval while the node is not ready in its domain.
const STARTING_INTERVAL: Duration = Duration::from_secs(1);
/// Poll interval otherwise; a daemon that ended is noticed within it.
const INTERVAL: Duration = Duration::from_secs(5);
/// Interval at which records of claims that no longer exist are deleted. The kubelet releases only claims that were once prepared.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(60);
/// Interval at which the label is applied again while the status does not list this node.
const REPUBLISH_INTERVAL: Duration = Duration::from_secs(30);

/// What this node's part in its domain is at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Joined {
    /// UID of the domain; empty without one.
    domain: String,
    /// Whether the domain's status says that this node is ready.
    ready: bool,
    /// Why it is not ready; empty while it starts.
    problem: String,
}

/// The claims for channels on this node, shared by the preparation of claims and by the task that acts on them.
#[allow(missing_debug_implementations)] // `Database` does not implement `Debug`
pub struct Membership {
    database: Arc<Database>,
    joined: watch::Sender<Joined>,
    /// Notified when the recorded claims have changed.
    changed: Notify,
}

impl Membership {
    /// The claims that are recorded in this database.
    pub fn new(database: Arc<Database>) -> Self {
        Self { database, joined: watch::Sender::default(), changed: Notify::new() }
    }

    /// Records a claim, by which this node joins the claim's domain.
    ///
    /// # Errors
    /// If the node is in another domain. The kubelet attempts it again until that one's pods have ended.
    pub(super) async fn join(&self, claim: DomainClaim) -> Result<(), NodeError> {
        let other = self.database.write(move |c| repo::put_domain_claim(c, &claim)).await?;
        if let Some(other) = other {
            return Err(NodeError::Invalid(format!(
                "the node is in ComputeDomain {}/{} until claim {} is released; a node is in one domain at a time",
                other.namespace, other.domain_name, other.name
            )));
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Deletes the record of a claim.
    pub(super) async fn leave(&self, claim: &str) -> Result<(), NodeError> {
        let claim = claim.to_owned();
        self.database.write(move |c| repo::delete_domain_claim(c, &claim)).await?;
        self.changed.notify_one();
        Ok(())
    }

    /// Waits until this node is ready in a domain.
    ///
    /// # Errors
    /// Why it is not ready after `timeout`.
    pub(super) async fn ready(&self, domain: &str, timeout: Duration) -> Result<(), NodeError> {
        let mut joined = self.joined.subscribe();
        if tokio::time::timeout(timeout, joined.wait_for(|j| j.domain == domain && j.ready)).await.is_ok() {
            return Ok(());
        }
        let last = joined.borrow().clone();
        let problem = if last.domain == domain { last.problem } else { String::new() };
        let reason =
            if problem.is_empty() { "IMEX is starting, or no controller updates its status".into() } else { problem };
        Err(NodeError::Invalid(format!("the ComputeDomain {domain} is not ready on this node yet: {reason}")))
    }
}

/// Who runs the IMEX daemon.
#[derive(Debug)]
pub enum Daemon {
    /// This agent runs one for each domain.
    Agent(Box<Imex>),
    /// The IMEX service of the machine, whose list of nodes is this file.
    Host(PathBuf),
}

/// The task that makes this node a member of its domain.
#[derive(Debug)]
pub struct Worker<C> {
    cluster: Arc<C>,
    node: String,
    driver: Arc<Driver>,
    daemon: Daemon,
    /// The address for IMEX on other nodes; by default that of the Node.
    address: Option<IpAddr>,
    /// What was published last, and when. `None` at the start, when the label may be that of an earlier agent.
    published: Option<(Option<Member>, Instant)>,
    cleaned: Option<Instant>,
    /// The watched domain, by UID.
    domain: Option<(String, watch::Receiver<Option<Value>>)>,
}

impl<C: Cluster> Worker<C> {
    /// A task for this node.
    pub fn new(cluster: Arc<C>, node: String, driver: Arc<Driver>, daemon: Daemon, address: Option<IpAddr>) -> Self {
        Self { cluster, node, driver, daemon, address, published: None, cleaned: None, domain: None }
    }

    /// Runs forever.
    pub async fn run(mut self, membership: Arc<Membership>) {
        loop {
            let joined = match self.step(&membership).await {
                Ok(joined) => joined,
                Err(error) => {
                    tracing::warn!(%error, "the ComputeDomain of this node cannot be updated; retrying");
                    Joined { problem: error.to_string(), ready: false, ..membership.joined.borrow().clone() }
                }
            };
            let interval = if joined.ready || joined.domain.is_empty() { INTERVAL } else { STARTING_INTERVAL };
            membership.joined.send_if_modified(|j| {
                let changed = *j != joined;
                *j = joined;
                changed
            });
            let domain_changed = async {
                // Without a watch, or after it has ended, the timer polls.
                let Some((_, object)) = &mut self.domain else { return std::future::pending().await };
                if object.changed().await.is_err() {
                    std::future::pending().await
                }
            };
            tokio::select! {
                () = membership.changed.notified() => {}
                () = domain_changed => {}
                () = tokio::time::sleep(interval) => {}
            }
        }
    }

    /// Moves the node one step towards the state that the recorded claims require.
    async fn step(&mut self, membership: &Membership) -> Result<Joined, NodeError> {
        let mut claims = membership.database.read(repo::domain_claims).await?;
        if !claims.is_empty() && self.cleaned.is_none_or(|at| at.elapsed() >= CLEANUP_INTERVAL) {
            let mut kept = Vec::new();
            for claim in claims {
                let found = self.cluster.get(RESOURCE_CLAIM, Some(&claim.namespace), &claim.name).await?;
                if found.is_some_and(|c| c["metadata"]["uid"] == claim.uid.as_str()) {
                    kept.push(claim);
                } else {
                    tracing::info!(namespace = claim.namespace, claim = claim.name, "the claim no longer exists");
                    membership.leave(&claim.uid).await?;
                }
            }
            claims = kept;
            self.cleaned = Some(Instant::now());
        }
        let Some(claim) = claims.first() else {
            self.domain = None;
            self.leave().await?;
            return Ok(Joined::default());
        };
        Ok(self.take_part(claim).await.unwrap_or_else(|error| {
            tracing::warn!(%error, domain = claim.domain_name, "not ready in the ComputeDomain; retrying");
            Joined { domain: claim.domain_uid.clone(), ready: false, problem: error.to_string() }
        }))
    }

    /// Moves the node one step towards being ready in the domain of a claim.
    async fn take_part(&mut self, claim: &DomainClaim) -> Result<Joined, NodeError> {
        let domain = claim.domain_uid.clone();
        let Some(object) = self.object(claim).await? else {
            self.leave().await?;
            return Ok(Joined { domain, ready: false, problem: "it was deleted".into() });
        };
        let state = self.driver.subscribe().borrow().clone();
        let machine = state.machine().ok_or_else(|| NodeError::NoDriver("it is gone".into()))?;
        let clique = channels::clique(machine)?;
        let address = self.address().await?;
        let listed = object["status"]["nodes"].as_array().into_iter().flatten();
        let entry = listed.into_iter().find(|n| n["name"] == self.node.as_str());
        let entry = entry.filter(|n| n["ipAddress"] == json!(address) && n["cliqueID"] == clique.as_str());
        let running = self.run_daemon(&machine.inventory.driver, &clique, &object, entry.is_some()).await;
        let (ready, problem) = match running {
            Ok(ready) => (ready, String::new()),
            Err(error) => (false, error.to_string()),
        };
        let member = Member { domain: domain.clone(), address: address.to_string(), clique, ready, problem };
        self.publish(Some(member.clone()), entry.is_some()).await?;
        let is_ready = ready && entry.is_some_and(|n| n["status"] == "Ready");
        Ok(Joined { domain, ready: is_ready, problem: member.problem })
    }

    /// The object of a claim's domain; `None` if it was deleted or is being deleted.
    async fn object(&mut self, claim: &DomainClaim) -> Result<Option<Value>, NodeError> {
        if self.domain.as_ref().is_none_or(|(uid, _)| *uid != claim.domain_uid) {
            let watched = self.cluster.watch(COMPUTE_DOMAIN, Some(&claim.namespace), &claim.domain_name);
            self.domain = Some((claim.domain_uid.clone(), watched));
        }
        let watched = self.domain.as_mut().and_then(|(_, object)| object.borrow_and_update().clone());
        let object = match watched {
            Some(object) => Some(object),
            // Either it was deleted, or the watch has not read it yet.
            None => self.cluster.get(COMPUTE_DOMAIN, Some(&claim.namespace), &claim.domain_name).await?,
        };
        let exists = |o: &Value| {
            o["metadata"]["uid"] == claim.domain_uid.as_str() && !o["metadata"]["deletionTimestamp"].is_string()
        };
        Ok(object.filter(exists))
    }

    /// Makes the IMEX daemon run, and returns whether it is ready. A node without a clique needs none.
    async fn run_daemon(
        &mut self,
        driver: &str,
        clique: &str,
        object: &Value,
        listed: bool,
    ) -> Result<bool, NodeError> {
        match &mut self.daemon {
            _ if clique.is_empty() => Ok(true),
            Daemon::Host(nodes) => {
                let text = std::fs::read_to_string(&*nodes).unwrap_or_default();
                let has_nodes = text.lines().any(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#'));
                if !has_nodes {
                    return Err(NodeError::Invalid(format!(
                        "{} lists no nodes: the IMEX service of the machine is not set up",
                        nodes.display()
                    )));
                }
                Ok(true)
            }
            // The other nodes know this one only when it is listed with its index.
            Daemon::Agent(_) if !listed => Ok(false),
            Daemon::Agent(imex) => {
                imex::check_driver(driver)?;
                imex.ensure(uid(object), &peers(object, clique)).await?;
                imex.is_ready().await
            }
        }
    }

    async fn address(&self) -> Result<IpAddr, NodeError> {
        if let Some(address) = self.address {
            return Ok(address);
        }
        let node = self.cluster.get(NODE, None, &self.node).await?.unwrap_or_default();
        let addresses = node["status"]["addresses"].as_array();
        let internal = addresses.into_iter().flatten().find(|a| a["type"] == "InternalIP");
        let address = internal.and_then(|a| a["address"].as_str()?.parse().ok());
        address.ok_or_else(|| NodeError::Invalid(format!("node {} has no InternalIP: set --imex-address", self.node)))
    }

    /// Leaves the domain: ends the daemon and removes the label.
    async fn leave(&mut self) -> Result<(), NodeError> {
        if let Daemon::Agent(imex) = &mut self.daemon {
            imex.stop().await;
        }
        self.publish(None, true).await
    }

    /// Applies the label and the annotation if they have changed, or if the controller seems not to have seen them.
    async fn publish(&mut self, member: Option<Member>, is_listed: bool) -> Result<(), NodeError> {
        let is_current = |(last, at): &(Option<Member>, Instant)| {
            *last == member && (is_listed || at.elapsed() < REPUBLISH_INTERVAL)
        };
        if self.published.as_ref().is_some_and(is_current) {
            return Ok(());
        }
        let mut metadata = json!({"name": self.node});
        if let Some(member) = &member {
            let text = serde_json::to_string(member).map_err(|e| NodeError::Invalid(e.to_string()))?;
            metadata["labels"] = json!({LABEL: member.domain});
            metadata["annotations"] = json!({MEMBER_ANNOTATION: text});
        }
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata});
        self.cluster.apply(NODE, &self.node, MANAGER, false, object).await?;
        self.published = Some((member, Instant::now()));
        Ok(())
    }
}

/// The UID of an object; empty if it is missing.
fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// The peers of a clique in the status of a domain.
fn peers(domain: &Value, clique: &str) -> Peers {
    let nodes = domain["status"]["nodes"].as_array().into_iter().flatten();
    let same_clique = nodes.filter(|n| n["cliqueID"] == clique);
    let peer = |n: &Value| {
        let index = n["index"].as_u64().and_then(|i| u32::try_from(i).ok()).filter(|i| *i < MAX_NODES_PER_CLIQUE)?;
        Some((index, n["ipAddress"].as_str()?.parse().ok()?))
    };
    same_clique.filter_map(peer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Fake;
    use crate::driver::tests::{fabric_driver, plain_driver};
    use crate::imex::tests::fake_programs;

    fn claim(uid: &str, domain: &str) -> DomainClaim {
        DomainClaim {
            uid: uid.into(),
            namespace: "team".into(),
            name: format!("claim-{uid}"),
            domain_uid: domain.into(),
            domain_name: format!("name-{domain}"),
        }
    }

    /// Creates the objects of claims and of their domains.
    fn put_objects(cluster: &Fake, claims: &[DomainClaim]) {
        for c in claims {
            let claim = json!({"metadata": {"uid": c.uid, "namespace": "team", "name": c.name}});
            cluster.put(RESOURCE_CLAIM, Some("team"), &c.name, Some(claim));
            let domain = json!({"metadata": {"uid": c.domain_uid, "namespace": "team", "name": c.domain_name}});
            cluster.put(COMPUTE_DOMAIN, Some("team"), &c.domain_name, Some(domain));
        }
    }

    fn database() -> (PathBuf, Arc<Database>) {
        let folder = std::env::temp_dir().join(format!("slipway-membership-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(&folder).unwrap();
        let database = Arc::new(Database::open(&folder.join("node.db"), &[repo::MIGRATION]).unwrap());
        (folder, database)
    }

    /// What the node reports about itself; `None` without the label.
    fn reported(cluster: &Fake) -> Option<Member> {
        let node = cluster.read(NODE, None, "n1")?;
        let member: Member =
            serde_json::from_str(node["metadata"]["annotations"][MEMBER_ANNOTATION].as_str()?).unwrap();
        assert_eq!(node["metadata"]["labels"][LABEL], member.domain.as_str());
        Some(member)
    }

    /// Plays the controller: lists the node and another one in the status of a domain.
    fn list(cluster: &Fake, claim: &DomainClaim, member: &Member) {
        let entry = |name: &str, address: &str, index: u32| {
            let status = if member.ready { "Ready" } else { "NotReady" };
            json!({"name": name, "ipAddress": address, "cliqueID": member.clique, "index": index, "status": status})
        };
        let nodes = [entry("n0", "10.0.0.9", 0), entry("n1", &member.address, 1)];
        let mut domain = cluster.read(COMPUTE_DOMAIN, Some("team"), &claim.domain_name).unwrap();
        domain["status"] = json!({"nodes": nodes});
        cluster.put(COMPUTE_DOMAIN, Some("team"), &claim.domain_name, Some(domain));
    }

    fn worker(cluster: &Arc<Fake>, driver: &Arc<Driver>, daemon: Daemon) -> Worker<Fake> {
        let address = Some("10.0.0.1".parse().unwrap());
        Worker::new(Arc::clone(cluster), "n1".into(), Arc::clone(driver), daemon, address)
    }

    #[tokio::test]
    async fn node_joins_becomes_ready_and_leaves() {
        let (root, settings) = fake_programs();
        let (folder, database) = database();
        let (cluster, driver) = (Arc::new(Fake::default()), fabric_driver());
        let membership = Membership::new(Arc::clone(&database));
        let c = claim("c1", "d1");
        put_objects(&cluster, std::slice::from_ref(&c));
        membership.join(c.clone()).await.unwrap();
        let mut first = worker(&cluster, &driver, Daemon::Agent(Box::new(Imex::new(settings.clone()).await)));
        assert!(!first.step(&membership).await.unwrap().ready);
        let member = reported(&cluster).unwrap();
        assert_eq!((member.domain.as_str(), member.address.as_str(), member.ready), ("d1", "10.0.0.1", false));
        assert!(!settings.hosts.exists(), "IMEX starts only when the other nodes know this one");
        list(&cluster, &c, &member);
        assert!(!first.step(&membership).await.unwrap().ready);
        let hosts = std::fs::read_to_string(&settings.hosts).unwrap();
        assert!(
            hosts.contains("10.0.0.9\tcompute-domain-daemon-0000\n10.0.0.1\tcompute-domain-daemon-0001\n"),
            "{hosts}"
        );
        std::fs::write(root.join("ready"), "").unwrap();
        assert!(!first.step(&membership).await.unwrap().ready, "the status does not say so yet");
        assert!(reported(&cluster).unwrap().ready);
        list(&cluster, &c, &reported(&cluster).unwrap());
        assert_eq!(
            first.step(&membership).await.unwrap(),
            Joined { domain: "d1".into(), ready: true, problem: String::new() }
        );
        // Another domain has to wait until the claim is released, also after the agent was killed.
        let other = membership.join(claim("c2", "d2")).await.unwrap_err().to_string();
        assert!(other.contains("team/name-d1 until claim claim-c1"), "{other}");
        drop(first);
        let membership = Membership::new(Arc::clone(&database));
        let mut second = worker(&cluster, &driver, Daemon::Agent(Box::new(Imex::new(settings.clone()).await)));
        assert!(second.step(&membership).await.unwrap().ready);
        membership.leave("c1").await.unwrap();
        assert_eq!(second.step(&membership).await.unwrap(), Joined::default());
        assert_eq!(reported(&cluster), None);
        let log = std::fs::read_to_string(root.join("log")).unwrap();
        assert!(log.ends_with("end\n"), "{log}");
        membership.join(claim("c2", "d2")).await.unwrap();
        driver.stop();
        for folder in [root, folder] {
            std::fs::remove_dir_all(folder).unwrap();
        }
    }

    #[tokio::test]
    async fn deleted_domains_and_claims_are_left() {
        let (root, settings) = fake_programs();
        let (folder, database) = database();
        let (cluster, driver) = (Arc::new(Fake::default()), fabric_driver());
        let membership = Membership::new(database);
        let c = claim("c1", "d1");
        put_objects(&cluster, std::slice::from_ref(&c));
        membership.join(c.clone()).await.unwrap();
        let mut worker = worker(&cluster, &driver, Daemon::Agent(Box::new(Imex::new(settings).await)));
        worker.step(&membership).await.unwrap();
        assert!(reported(&cluster).is_some());
        cluster.put(COMPUTE_DOMAIN, Some("team"), &c.domain_name, None);
        assert_eq!(worker.step(&membership).await.unwrap().problem, "it was deleted");
        assert_eq!(reported(&cluster), None);
        let error = membership.ready("d1", Duration::from_millis(1)).await.unwrap_err().to_string();
        assert!(error.contains("not ready on this node"), "{error}");
        // The kubelet does not release a claim whose preparation never succeeded.
        cluster.put(RESOURCE_CLAIM, Some("team"), &c.name, None);
        worker.cleaned = None;
        assert_eq!(worker.step(&membership).await.unwrap(), Joined::default());
        membership.join(claim("c2", "d2")).await.unwrap();
        driver.stop();
        for folder in [root, folder] {
            std::fs::remove_dir_all(folder).unwrap();
        }
    }

    #[tokio::test]
    async fn missing_program_is_reported_and_a_node_without_clique_needs_none() {
        let (root, settings) = fake_programs();
        std::fs::remove_dir_all(root.join("usr")).unwrap();
        let (folder, database) = database();
        let cluster = Arc::new(Fake::default());
        let membership = Membership::new(database);
        let c = claim("c1", "d1");
        put_objects(&cluster, std::slice::from_ref(&c));
        membership.join(c.clone()).await.unwrap();
        let driver = fabric_driver();
        let mut with_fabric = worker(&cluster, &driver, Daemon::Agent(Box::new(Imex::new(settings.clone()).await)));
        with_fabric.step(&membership).await.unwrap();
        list(&cluster, &c, &reported(&cluster).unwrap());
        let problem = with_fabric.step(&membership).await.unwrap().problem;
        assert!(problem.starts_with("nvidia-imex is not installed"), "{problem}");
        assert_eq!(reported(&cluster).unwrap().problem, problem, "the controller reports it in an event of the domain");
        driver.stop();
        // The service of the machine.
        let driver = fabric_driver();
        let nodes = root.join("nodes_config.cfg");
        let mut host = worker(&cluster, &driver, Daemon::Host(nodes.clone()));
        assert!(host.step(&membership).await.unwrap().problem.contains("lists no nodes"));
        std::fs::write(&nodes, "10.0.0.1\n").unwrap();
        host.step(&membership).await.unwrap();
        assert!(reported(&cluster).unwrap().ready);
        driver.stop();
        let driver = plain_driver();
        let mut without = worker(&cluster, &driver, Daemon::Agent(Box::new(Imex::new(settings).await)));
        without.step(&membership).await.unwrap();
        let member = reported(&cluster).unwrap();
        assert_eq!((member.clique.as_str(), member.ready), ("", true));
        driver.stop();
        for folder in [root, folder] {
            std::fs::remove_dir_all(folder).unwrap();
        }
    }
}
