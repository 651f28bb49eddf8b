//! Tests of the fleet against a fake provider that lags, rejects requests and loses responses.
//!
//! The controller is interrupted at every await point. However it is interrupted, each machine is ordered exactly once.

use std::collections::VecDeque;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::providers::ProviderFuture;
use crate::spec::tests::FILE;

/// A failure of the next call of a kind.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The provider rejects the request with this status and does nothing.
    Rejected(u16),
    /// The provider executes the request, but its response is lost.
    ResponseLost,
}

/// A machine that the fake provider created.
#[derive(Debug)]
struct Created {
    instance: Instance,
    at: Instant,
}

/// The state of the fake provider's account.
#[derive(Debug, Default)]
struct Account {
    machines: Vec<Created>,
    /// Names of accepted orders.
    orders: Vec<String>,
    /// Identifiers of deleted machines.
    deleted: Vec<String>,
    /// Failures of future calls, by kind of call, in this order.
    faults: VecDeque<(&'static str, Fault)>,
    /// Time after the order until lists show a machine.
    list_lag: Duration,
    /// Time after the order until a request by identifier finds a machine.
    get_lag: Duration,
    next: u32,
}

/// Time after the order until a machine is on.
const BOOT_TIME: Duration = Duration::from_secs(5);

impl Account {
    fn add(&mut self, name: &str, created_ms: Option<i64>) -> Instance {
        self.next += 1;
        let instance = Instance {
            id: format!("m{}", self.next),
            name: name.into(),
            size: "s".into(),
            power: Power::Transitioning,
            address: None,
            internal: None,
            hourly: Some(1.0),
            created_ms,
        };
        self.machines.push(Created { instance: instance.clone(), at: Instant::now() });
        instance
    }

    fn names(&self) -> Vec<&str> {
        self.machines.iter().map(|m| m.instance.name.as_str()).collect()
    }
}

impl Created {
    /// The machine as the provider reports it now.
    fn reported(&self) -> Instance {
        let on = self.at.elapsed() >= BOOT_TIME;
        Instance {
            power: if on { self.instance.power_when_on() } else { Power::Transitioning },
            address: on.then(|| "192.0.2.7".into()),
            ..self.instance.clone()
        }
    }
}

impl Instance {
    fn power_when_on(&self) -> Power {
        if self.power == Power::Off { Power::Off } else { Power::On }
    }
}

#[derive(Debug, Clone, Default)]
struct Fake(Arc<Mutex<Account>>);

impl Fake {
    /// Executes a call. It yields before and after its effect, so that a test can interrupt the controller at either point.
    async fn call<T>(
        &self,
        kind: &'static str,
        effect: impl FnOnce(&mut Account) -> Result<T, ClusterError>,
    ) -> Result<T, ClusterError> {
        tokio::task::yield_now().await;
        let result = {
            let mut account = self.0.lock();
            let fault = match account.faults.front() {
                Some((fault_kind, fault)) if *fault_kind == kind => Some(*fault),
                _ => None,
            };
            if fault.is_some() {
                account.faults.pop_front();
            }
            match fault {
                Some(Fault::Rejected(status)) => Err(failure(status)),
                Some(Fault::ResponseLost) => effect(&mut account).and(Err(failure(0))),
                None => effect(&mut account),
            }
        };
        tokio::task::yield_now().await;
        result
    }
}

fn failure(status: u16) -> ClusterError {
    ClusterError::Provider { provider: "do".into(), status, message: "injected by the test".into() }
}

impl Provider for Fake {
    fn list(&self) -> ProviderFuture<'_, Vec<Instance>> {
        Box::pin(self.call("list", |account| {
            let visible = account.machines.iter().filter(|m| m.at.elapsed() >= account.list_lag);
            Ok(visible.map(Created::reported).collect())
        }))
    }
    fn get<'a>(&'a self, id: &'a str) -> ProviderFuture<'a, Option<Instance>> {
        Box::pin(self.call("get", move |account| {
            let mut visible = account.machines.iter().filter(|m| m.at.elapsed() >= account.get_lag);
            Ok(visible.find(|m| m.instance.id == id).map(Created::reported))
        }))
    }
    fn create<'a>(&'a self, name: &'a str, _cluster: &'a str, _group: &'a Group) -> ProviderFuture<'a, Instance> {
        Box::pin(self.call("create", move |account| {
            account.orders.push(name.into());
            Ok(account.add(name, Some(slipway_core::clock::now_ms())))
        }))
    }
    fn power<'a>(&'a self, id: &'a str, on: bool) -> ProviderFuture<'a, ()> {
        Box::pin(self.call("power", move |account| {
            for machine in account.machines.iter_mut().filter(|m| m.instance.id == id) {
                machine.instance.power = if on { Power::On } else { Power::Off };
            }
            Ok(())
        }))
    }
    fn delete<'a>(&'a self, id: &'a str) -> ProviderFuture<'a, ()> {
        Box::pin(self.call("delete", move |account| {
            // Both real providers behave this way: a machine that is not visible yet is "not found", and is kept.
            let lag = account.get_lag;
            let before = account.machines.len();
            account.machines.retain(|m| m.instance.id != id || m.at.elapsed() < lag);
            if account.machines.len() < before {
                account.deleted.push(id.into());
            }
            Ok(())
        }))
    }
    fn sizes(&self) -> ProviderFuture<'_, BTreeMap<String, Size>> {
        let gpus = SizeGpus { model: "nvidia h100".into(), count: 8 };
        let sizes = [
            ("h100x8".to_owned(), Size { hourly: 24.0, gpus: Some(gpus) }),
            ("plain".to_owned(), Size { hourly: 1.0, gpus: None }),
        ];
        Box::pin(async { Ok(sizes.into()) })
    }
    fn gpus_by_name(&self, size: &str) -> Option<SizeGpus> {
        Some(SizeGpus { model: size.into(), count: 1 })
    }
    fn charges_when_off(&self) -> bool {
        true
    }
}

/// The controller's disk and the provider's account, which both outlive a controller.
struct World {
    home: PathBuf,
    fake: Fake,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.home); // a temporary folder
    }
}

fn cluster(provider: &str, count: u32) -> Cluster {
    let groups = format!(
        "spec:
  providers:
    do: {{digitalocean: {{token: {{env: T}}, region: nyc2, sshKeys: ['1']}}}}
    other: {{digitalocean: {{token: {{env: T}}, region: nyc2, sshKeys: ['1']}}}}
  groups: [{{name: gpu, provider: {provider}, size: s, image: i, count: {count}, roles: [worker]}}]"
    );
    Cluster::parse(&FILE.replacen("spec:", &groups, 1)).unwrap()
}

impl World {
    fn new(list_lag: u64, get_lag: u64) -> Self {
        let fake = Fake::default();
        fake.0.lock().list_lag = Duration::from_secs(list_lag);
        fake.0.lock().get_lag = Duration::from_secs(get_lag);
        Self { home: std::env::temp_dir().join(slipway_core::ids::hex32()), fake }
    }

    fn state(&self) -> State {
        State::open(&self.home, "lab").unwrap()
    }

    /// A restarted controller, which only knows what is on disk.
    fn fleet(&self) -> Fleet {
        self.fleet_for(&cluster("do", 1)).unwrap()
    }

    fn fleet_for(&self, cluster: &Cluster) -> Result<Fleet, ClusterError> {
        let state = self.state();
        let provider = |name: &str| (name.to_owned(), Box::new(self.fake.clone()) as Box<dyn Provider>);
        Ok(Fleet::new(cluster, &state, [provider("do"), provider("other")].into(), ledger::load(&state)?))
    }

    fn account(&self) -> parking_lot::MutexGuard<'_, Account> {
        self.fake.0.lock()
    }

    /// Names of the provider's machines, number of accepted orders, number of deleted machines.
    fn observed(&self) -> (Vec<String>, usize, usize) {
        let account = self.account();
        let names = account.machines.iter().map(|m| m.instance.name.clone()).collect();
        (names, account.orders.len(), account.deleted.len())
    }

    /// Asserts that one machine was ordered once, and that its identifier and address are in the ledger.
    fn assert_ordered_once(&self, when: &str) {
        let (account, ledger) = (self.account(), ledger::load(&self.state()).unwrap());
        assert_eq!((account.names(), account.orders.len()), (vec!["lab-gpu-1"], 1), "{when}");
        assert_eq!(ledger["gpu-1"].id.as_deref(), Some(account.machines[0].instance.id.as_str()), "{when}");
        assert_eq!(ledger["gpu-1"].address.as_deref(), Some("192.0.2.7"), "{when}");
    }
}

/// Polls a future this many times and then drops it, as the death of its process would. Returns `None` if the future was dropped.
async fn interrupt_after<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let (mut future, mut remaining) = (Box::pin(future), polls);
    std::future::poll_fn(move |context| {
        if remaining == 0 {
            return Poll::Ready(None);
        }
        remaining -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// Runs `test` with 0, 1, 2, … polls, until it returns true because the future that it interrupts completed.
async fn at_every_point<F: Future<Output = bool>>(test: impl Fn(usize) -> F) {
    let mut polls = 0;
    while !test(polls).await {
        polls += 1;
        assert!(polls < 10_000, "the future never completes");
    }
    assert!(polls > 5, "the future was interrupted at only {polls} points");
}

#[tokio::test(start_paused = true)]
async fn prices_of_gpus_are_those_of_the_list_and_of_existing_machines() {
    let world = World::new(0, 0);
    world.fake.0.lock().add("other", None);
    let prices = world.fleet().gpu_prices().await.unwrap();
    let found = prices.iter().map(|p| (p.model.as_str(), p.hourly_per_gpu())).collect::<Vec<_>>();
    let of_each = [("nvidia h100", 3.0), ("s", 1.0)];
    assert_eq!(found, [of_each, of_each].concat(), "both providers of the cluster");
}

#[tokio::test(start_paused = true)]
async fn controller_crash_at_any_point_orders_exactly_one_machine() {
    for (list_lag, get_lag) in [(0, 0), (20, 5), (59, 14)] {
        at_every_point(|polls| async move {
            let world = World::new(list_lag, get_lag);
            let completed = interrupt_after(world.fleet().ensure("gpu-1"), polls).await.is_some();
            let (machine, _) = world.fleet().ensure("gpu-1").await.unwrap();
            assert_eq!(machine.address, "192.0.2.7");
            world.assert_ordered_once(&format!("interrupted after {polls} polls, list lag {list_lag} s"));
            completed
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn repeated_controller_crashes_order_exactly_one_machine() {
    for every in 1..12 {
        let world = World::new(7, 3);
        for polls in (1..40).map(|n| n * every % 23) {
            let _ = interrupt_after(world.fleet().ensure("gpu-1"), polls).await; // completed or not
        }
        world.fleet().ensure("gpu-1").await.unwrap();
        world.assert_ordered_once(&format!("every {every}"));
    }
}

/// A rate limit or a hung connection delays an order, so its intention may be much older than the machine. The list lags behind the order.
#[tokio::test(start_paused = true)]
async fn order_is_searched_for_the_full_list_lag_even_if_the_intention_is_old() {
    let world = World::new(50, 5);
    let intention = Owned {
        since_ms: slipway_core::clock::now_ms() - 900_000,
        ..Owned::intention(&cluster("do", 1).spec.groups[0])
    };
    world.state().save(ledger::DOCUMENT, &Ledger::from([("gpu-1".to_owned(), intention)])).unwrap();
    {
        let mut account = world.account();
        account.orders.push("lab-gpu-1".into());
        account.add("lab-gpu-1", Some(slipway_core::clock::now_ms()));
    }
    world.fleet().ensure("gpu-1").await.unwrap();
    world.assert_ordered_once("the order was slow");
}

#[tokio::test(start_paused = true)]
async fn lost_create_response_is_resolved_in_the_same_call() {
    for (list_lag, get_lag) in [(0, 0), (59, 14)] {
        let world = World::new(list_lag, get_lag);
        world.account().faults.push_back(("create", Fault::ResponseLost));
        world.fleet().ensure("gpu-1").await.unwrap();
        world.assert_ordered_once("the response was lost");
    }
    // The response is lost and lists fail too. The outcome of the order is unknown, so nothing more is ordered until it is known.
    let world = World::new(0, 0);
    world.account().faults.extend([("create", Fault::ResponseLost), ("list", Fault::Rejected(503))]);
    world.fleet().ensure("gpu-1").await.unwrap_err();
    assert!(ledger::load(&world.state()).unwrap().contains_key("gpu-1"), "the intention stays");
    world.account().faults.push_back(("list", Fault::Rejected(503)));
    world.fleet().ensure("gpu-1").await.unwrap_err();
    world.fleet().ensure("gpu-1").await.unwrap();
    world.assert_ordered_once("the provider was unavailable");
}

#[tokio::test(start_paused = true)]
async fn rejected_order_leaves_no_ledger_entry() {
    for status in [422, 429, 503, 500, 408, 0] {
        let world = World::new(0, 0);
        world.account().faults.push_back(("create", Fault::Rejected(status)));
        let began = Instant::now();
        let error = world.fleet().ensure("gpu-1").await.unwrap_err();
        assert!(matches!(error, ClusterError::Provider { status: actual, .. } if actual == status), "{error}");
        let definite = matches!(status, 422 | 429);
        assert_eq!(
            began.elapsed() < Duration::from_secs(60),
            definite,
            "{status}: searched only if the outcome is unknown"
        );
        assert!(ledger::load(&world.state()).unwrap().is_empty() && world.account().machines.is_empty(), "{status}");
        world.fleet().ensure("gpu-1").await.unwrap();
        world.assert_ordered_once("the next attempt succeeds");
    }
}

#[tokio::test(start_paused = true)]
async fn provider_errors_after_the_order_do_not_cause_another_order() {
    for (kind, status) in [("get", 503), ("get", 429), ("list", 503)] {
        let world = World::new(20, 5);
        let _ = interrupt_after(world.fleet().ensure("gpu-1"), 6).await; // interrupted around the order
        world.account().faults.push_back((kind, Fault::Rejected(status)));
        let _ = world.fleet().ensure("gpu-1").await; // fails, or does not make this call
        world.account().faults.clear();
        world.fleet().ensure("gpu-1").await.unwrap();
        world.assert_ordered_once(kind);
    }
}

#[tokio::test(start_paused = true)]
async fn interrupted_deletion_leaves_no_machine_behind() {
    for (list_lag, get_lag) in [(0, 0), (59, 14)] {
        at_every_point(|polls| async move {
            let world = World::new(list_lag, get_lag);
            // The creation is interrupted at any point, and the machine is deleted at once.
            let completed = interrupt_after(world.fleet().ensure("gpu-1"), polls).await.is_some();
            let _ = interrupt_after(world.fleet().delete("gpu-1"), polls % 7).await; // the deletion is interrupted too
            world.fleet().delete("gpu-1").await.unwrap();
            assert!(world.account().machines.is_empty(), "{polls} polls: {:?}", world.account().machines);
            assert!(ledger::load(&world.state()).unwrap().is_empty(), "{polls} polls");
            completed
        })
        .await;
    }
    let world = World::new(0, 0);
    world.fleet().ensure("gpu-1").await.unwrap();
    // Another operation on the machine is in progress, and then the response is lost.
    world.account().faults.extend([("delete", Fault::Rejected(422)), ("delete", Fault::ResponseLost)]);
    world.fleet().delete("gpu-1").await.unwrap_err();
    world.fleet().delete("gpu-1").await.unwrap();
    assert!(world.account().machines.is_empty() && ledger::load(&world.state()).unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn foreign_machines_are_neither_used_nor_deleted() {
    let hour = 3_600_000;
    // The machine was created by someone else, after the plan had cached the list.
    let world = World::new(0, 0);
    let fleet = world.fleet();
    fleet.plan().await.unwrap();
    world.account().add("lab-gpu-1", Some(slipway_core::clock::now_ms()));
    let error = fleet.ensure("gpu-1").await.unwrap_err();
    assert!(matches!(&error, ClusterError::Foreign(text) if text.contains("cluster adopt gpu-1 m1")), "{error}");
    fleet.delete("gpu-1").await.unwrap();
    assert_eq!(world.observed(), (vec!["lab-gpu-1".to_owned()], 0, 0));

    // The machine was created by someone else, long after an interrupted order of ours.
    let world = World::new(0, 0);
    let _ = interrupt_after(world.fleet().ensure("gpu-1"), 3).await; // the intention is written, nothing ordered
    assert!(ledger::load(&world.state()).unwrap()["gpu-1"].id.is_none() && world.account().orders.is_empty());
    world.account().add("lab-gpu-1", Some(slipway_core::clock::now_ms() + 24 * hour));
    assert!(matches!(world.fleet().ensure("gpu-1").await, Err(ClusterError::Foreign(_))));
    world.fleet().delete("gpu-1").await.unwrap();
    assert_eq!(world.observed(), (vec!["lab-gpu-1".to_owned()], 0, 0));

    // Two machines of this name were created at the same time, so the user must choose one.
    let world = World::new(0, 0);
    world.account().faults.push_back(("create", Fault::ResponseLost));
    let _ = interrupt_after(world.fleet().ensure("gpu-1"), 4).await; // the order is accepted, its response never arrives
    assert_eq!(world.account().orders.len(), 1);
    world.account().add("lab-gpu-1", Some(slipway_core::clock::now_ms()));
    assert!(matches!(world.fleet().ensure("gpu-1").await, Err(ClusterError::Foreign(_))));
    assert!(matches!(world.fleet().delete("gpu-1").await, Err(ClusterError::Foreign(_))));
    world.fleet().adopt("gpu-1", "m2").await.unwrap();
    world.fleet().delete("gpu-1").await.unwrap();
    assert_eq!(
        (world.observed().0.len(), world.observed().2),
        (2, 0),
        "an adopted machine is only removed from the ledger"
    );
    for invalid in ["", "-m1", "../teams", "m1?x"] {
        assert!(world.fleet().adopt("gpu-1", invalid).await.is_err(), "{invalid}");
    }
}

#[tokio::test(start_paused = true)]
async fn externally_deleted_machine_is_ordered_again() {
    let world = World::new(59, 14);
    world.fleet().ensure("gpu-1").await.unwrap();
    world.account().machines.clear();
    world.fleet().ensure("gpu-1").await.unwrap();
    assert_eq!(world.observed(), (vec!["lab-gpu-1".to_owned()], 2, 0));
}

#[tokio::test(start_paused = true)]
async fn group_with_a_changed_provider_keeps_its_machine() {
    let world = World::new(0, 0);
    world.fleet().ensure("gpu-1").await.unwrap();
    let fleet = world.fleet_for(&cluster("other", 1)).unwrap();
    let error = fleet.ensure("gpu-1").await.unwrap_err().to_string();
    assert!(
        error.contains("created by 'do'") && fleet.plan().await.unwrap()[0].1.text.contains("created by 'do'"),
        "{error}"
    );
    world.assert_ordered_once("the group names another provider");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_ordered_if_the_ledger_cannot_be_read_or_written() {
    let world = World::new(0, 0);
    let fleet = world.fleet();
    world.fleet().ensure("gpu-1").await.unwrap();
    let path = world.home.join("clusters/lab/machines.json");
    let intact = std::fs::read(&path).unwrap();
    for damaged in [&b""[..], b"{", &intact[..intact.len() / 2]] {
        std::fs::write(&path, damaged).unwrap();
        assert!(matches!(world.fleet_for(&cluster("do", 1)), Err(ClusterError::Io { .. })));
        assert!(fleet.reload().is_err() && owns_machines(&world.state()).is_err());
        assert!(resolved(&cluster("do", 1), &world.state()).is_err());
    }
    // With a folder in place of the file, nothing can be written.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir_all(path.join("x")).unwrap();
    world.account().machines.clear();
    assert!(fleet.ensure("gpu-1").await.is_err());
    assert_eq!(world.account().orders.len(), 1, "only the first order");
}

#[tokio::test(start_paused = true)]
async fn machines_are_powered_on_and_off_only_if_needed() {
    let world = World::new(0, 0);
    world.fleet().ensure("gpu-1").await.unwrap();
    assert_eq!(world.fleet().power_off("gpu-1").await.unwrap(), 1);
    assert_eq!(world.fleet().power_off("gpu-1").await.unwrap(), 0);
    at_every_point(|polls| {
        let world = &world;
        async move {
            world.account().machines[0].instance.power = Power::Off;
            let completed = interrupt_after(world.fleet().ensure("gpu-1"), polls).await.is_some();
            world.fleet().ensure("gpu-1").await.unwrap();
            assert_eq!(world.account().machines[0].instance.power, Power::On, "{polls}");
            completed
        }
    })
    .await;
    world.assert_ordered_once("off and on");
}

/// [`cluster`] with the address of the fake provider's machines for `cp2`.
fn cluster_that_lists_the_machine() -> Cluster {
    let mut listed = cluster("do", 1);
    listed.spec.machines[1].address = "::ffff:192.0.2.7".into();
    listed
}

#[tokio::test(start_paused = true)]
async fn machine_of_a_group_that_is_also_listed_is_rejected() {
    let world = World::new(0, 0);
    let listed = cluster_that_lists_the_machine();
    let is_conflict = |error: ClusterError| {
        let text = error.to_string();
        assert!(text.contains("'cp2' and 'gpu-1'") && matches!(error, ClusterError::Spec { .. }), "{text}");
    };
    world.account().add("foreign", None);
    tokio::time::sleep(BOOT_TIME).await; // only then the provider reports its address
    is_conflict(world.fleet_for(&listed).unwrap().adopt("gpu-1", "m1").await.unwrap_err());
    assert!(ledger::load(&world.state()).unwrap().is_empty());
    world.account().machines.clear();
    is_conflict(world.fleet_for(&listed).unwrap().ensure("gpu-1").await.unwrap_err());
    assert!(ledger::load(&world.state()).unwrap()["gpu-1"].address.is_none());
    world.fleet().ensure("gpu-1").await.unwrap();
    is_conflict(resolved(&listed, &world.state()).unwrap_err());
    assert_eq!(resolved(&cluster("do", 1), &world.state()).unwrap().spec.machines.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn one_provider_machine_has_one_name() {
    let world = World::new(0, 0);
    world.fleet().ensure("gpu-1").await.unwrap();
    let id = world.account().machines[0].instance.id.clone();
    // Another group, whose provider is another name for the same account.
    let mut both = cluster("do", 1);
    both.spec.groups.push(Group { name: "other".into(), provider: "other".into(), ..both.spec.groups[0].clone() });
    let error = world.fleet_for(&both).unwrap().adopt("other-1", &id).await.unwrap_err().to_string();
    assert!(error.contains("is used as 'gpu-1' already"), "{error}");
    // A ledger that was changed by hand.
    let mut ledger = ledger::load(&world.state()).unwrap();
    ledger.insert("other-1".into(), Owned { provider: "other".into(), ..ledger["gpu-1"].clone() });
    world.state().save(ledger::DOCUMENT, &ledger).unwrap();
    let error = resolved(&both, &world.state()).unwrap_err().to_string();
    assert!(error.contains("'gpu-1' and 'other-1' are the same machine"), "{error}");
}
