//! A provider that forgets, lags and refuses, and a controller that dies at every point where it waits.

use std::collections::VecDeque;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::providers::Answer;
use crate::spec::tests::FILE;

/// What goes wrong with the next call of a kind.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The provider refuses with this status, and does nothing.
    Refused(u16),
    /// It does what it was asked, and the answer is lost.
    Lost,
}

#[derive(Debug)]
struct Made {
    instance: Instance,
    at: Instant,
}

/// All that the provider has and was asked.
#[derive(Debug, Default)]
struct Account {
    machines: Vec<Made>,
    /// Orders that were taken, by name.
    orders: Vec<String>,
    deleted: Vec<String>,
    /// Calls to come that go wrong.
    faults: VecDeque<(&'static str, Fault)>,
    /// A machine is seen in lists, and by its identifier, so long after its order.
    list_lag: Duration,
    get_lag: Duration,
    next: u32,
}

/// So long after its order a machine is on.
const BOOT: Duration = Duration::from_secs(5);

impl Account {
    fn add(&mut self, name: &str, created_ms: Option<i64>) -> Instance {
        self.next += 1;
        let instance = Instance {
            id: format!("m{}", self.next),
            name: name.into(),
            size: "s".into(),
            power: Power::Between,
            address: None,
            internal: None,
            hourly: Some(1.0),
            created_ms,
        };
        self.machines.push(Made { instance: instance.clone(), at: Instant::now() });
        instance
    }

    fn names(&self) -> Vec<&str> {
        self.machines.iter().map(|m| m.instance.name.as_str()).collect()
    }
}

impl Made {
    fn shown(&self) -> Instance {
        let on = self.at.elapsed() >= BOOT;
        Instance {
            power: if on { self.instance.power_when_on() } else { Power::Between },
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
    /// A call. It waits before and after it takes effect, so a controller can die at either point.
    async fn call<T>(
        &self,
        kind: &'static str,
        effect: impl FnOnce(&mut Account) -> Result<T, ClusterError>,
    ) -> Result<T, ClusterError> {
        tokio::task::yield_now().await;
        let answer = {
            let mut account = self.0.lock();
            let fault = match account.faults.front() {
                Some((of, fault)) if *of == kind => Some(*fault),
                _ => None,
            };
            if fault.is_some() {
                account.faults.pop_front();
            }
            match fault {
                Some(Fault::Refused(status)) => Err(failure(status)),
                Some(Fault::Lost) => effect(&mut account).and(Err(failure(0))),
                None => effect(&mut account),
            }
        };
        tokio::task::yield_now().await;
        answer
    }
}

fn failure(status: u16) -> ClusterError {
    ClusterError::Provider { provider: "do".into(), status, message: "as the test wants it".into() }
}

impl Provider for Fake {
    fn list(&self) -> Answer<'_, Vec<Instance>> {
        Box::pin(self.call("list", |account| {
            let seen = account.machines.iter().filter(|m| m.at.elapsed() >= account.list_lag);
            Ok(seen.map(Made::shown).collect())
        }))
    }
    fn get<'a>(&'a self, id: &'a str) -> Answer<'a, Option<Instance>> {
        Box::pin(self.call("get", move |account| {
            let mut seen = account.machines.iter().filter(|m| m.at.elapsed() >= account.get_lag);
            Ok(seen.find(|m| m.instance.id == id).map(Made::shown))
        }))
    }
    fn create<'a>(&'a self, name: &'a str, _cluster: &'a str, _group: &'a Group) -> Answer<'a, Instance> {
        Box::pin(self.call("create", move |account| {
            account.orders.push(name.into());
            Ok(account.add(name, Some(slipway_core::clock::now_ms())))
        }))
    }
    fn power<'a>(&'a self, id: &'a str, on: bool) -> Answer<'a, ()> {
        Box::pin(self.call("power", move |account| {
            for made in account.machines.iter_mut().filter(|m| m.instance.id == id) {
                made.instance.power = if on { Power::On } else { Power::Off };
            }
            Ok(())
        }))
    }
    fn delete<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(self.call("delete", move |account| {
            // As both providers do: what cannot be seen yet is "not there", and stays.
            let lag = account.get_lag;
            let before = account.machines.len();
            account.machines.retain(|m| m.instance.id != id || m.at.elapsed() < lag);
            if account.machines.len() < before {
                account.deleted.push(id.into());
            }
            Ok(())
        }))
    }
    fn prices(&self) -> Answer<'_, BTreeMap<String, f64>> {
        Box::pin(async { Ok(BTreeMap::new()) })
    }
    fn charges_when_off(&self) -> bool {
        true
    }
}

/// A controller's disk, and a provider's account.
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

    /// A controller that begins anew: all that it knows of before is on disk.
    fn fleet(&self) -> Fleet {
        self.fleet_of(&cluster("do", 1)).unwrap()
    }

    fn fleet_of(&self, cluster: &Cluster) -> Result<Fleet, ClusterError> {
        let state = self.state();
        let provider = |name: &str| (name.to_owned(), Box::new(self.fake.clone()) as Box<dyn Provider>);
        Ok(Fleet::new(cluster, &state, [provider("do"), provider("other")].into(), ledger::load(&state)?))
    }

    fn account(&self) -> parking_lot::MutexGuard<'_, Account> {
        self.fake.0.lock()
    }

    /// Names of its machines, how many orders it took, how many machines it deleted. Locks once.
    fn seen(&self) -> (Vec<String>, usize, usize) {
        let account = self.account();
        let names = account.machines.iter().map(|m| m.instance.name.clone()).collect();
        (names, account.orders.len(), account.deleted.len())
    }

    /// One machine, ordered once, and its identifier in the ledger.
    fn assert_one(&self, when: &str) {
        let (account, ledger) = (self.account(), ledger::load(&self.state()).unwrap());
        assert_eq!((account.names(), account.orders.len()), (vec!["lab-gpu-1"], 1), "{when}");
        assert_eq!(ledger["gpu-1"].id.as_deref(), Some(account.machines[0].instance.id.as_str()), "{when}");
        assert_eq!(ledger["gpu-1"].address.as_deref(), Some("192.0.2.7"), "{when}");
    }
}

/// Polls a future so often and drops it then, as the end of its process would; none when it was dropped.
async fn cut<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let (mut future, mut left) = (Box::pin(future), polls);
    std::future::poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// Runs `test` with every number of polls, until the future that it cuts comes to its end.
async fn at_every_point<F: Future<Output = bool>>(test: impl Fn(usize) -> F) {
    let mut polls = 0;
    while !test(polls).await {
        polls += 1;
        assert!(polls < 10_000, "it never ends");
    }
    assert!(polls > 5, "it was cut at {polls} points only");
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_dies_anywhere_orders_exactly_one_machine() {
    for (list_lag, get_lag) in [(0, 0), (20, 5), (59, 14)] {
        at_every_point(|polls| async move {
            let world = World::new(list_lag, get_lag);
            let whole = cut(world.fleet().ensure("gpu-1"), polls).await.is_some();
            let (machine, _) = world.fleet().ensure("gpu-1").await.unwrap();
            assert_eq!(machine.address, "192.0.2.7");
            world.assert_one(&format!("cut after {polls} polls, lists lag {list_lag} s"));
            whole
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_dies_again_and_again_orders_exactly_one_machine() {
    for every in 1..12 {
        let world = World::new(7, 3);
        for polls in (1..40).map(|n| n * every % 23) {
            let _ = cut(world.fleet().ensure("gpu-1"), polls).await; // whether it came to its end does not matter
        }
        world.fleet().ensure("gpu-1").await.unwrap();
        world.assert_one(&format!("every {every}"));
    }
}

/// A slow order (limits of requests, a hung connection) makes the time since the intention long; lists lag behind the order itself.
#[tokio::test(start_paused = true)]
async fn an_order_is_looked_for_as_long_as_lists_may_lag_however_old_the_intention_is() {
    let world = World::new(50, 5);
    let intention = Owned {
        since_ms: slipway_core::clock::now_ms() - 900_000,
        ..Owned::intention(&cluster("do", 1).spec.groups[0])
    };
    world.state().keep(ledger::DOCUMENT, &Ledger::from([("gpu-1".to_owned(), intention)])).unwrap();
    {
        let mut account = world.account();
        account.orders.push("lab-gpu-1".into());
        account.add("lab-gpu-1", Some(slipway_core::clock::now_ms()));
    }
    world.fleet().ensure("gpu-1").await.unwrap();
    world.assert_one("the order was slow");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_lost_is_found_out_at_once() {
    for (list_lag, get_lag) in [(0, 0), (59, 14)] {
        let world = World::new(list_lag, get_lag);
        world.account().faults.push_back(("create", Fault::Lost));
        world.fleet().ensure("gpu-1").await.unwrap();
        world.assert_one("the answer was lost");
    }
    // Neither the answer nor the lists come: nothing is known, and nothing is ordered before it is.
    let world = World::new(0, 0);
    world.account().faults.extend([("create", Fault::Lost), ("list", Fault::Refused(503))]);
    world.fleet().ensure("gpu-1").await.unwrap_err();
    assert!(ledger::load(&world.state()).unwrap().contains_key("gpu-1"), "the intention stays");
    world.account().faults.push_back(("list", Fault::Refused(503)));
    world.fleet().ensure("gpu-1").await.unwrap_err();
    world.fleet().ensure("gpu-1").await.unwrap();
    world.assert_one("the provider was away");
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_was_not_ordered() {
    for status in [422, 429, 503, 500, 408, 0] {
        let world = World::new(0, 0);
        world.account().faults.push_back(("create", Fault::Refused(status)));
        let began = Instant::now();
        let error = world.fleet().ensure("gpu-1").await.unwrap_err();
        assert!(matches!(error, ClusterError::Provider { status: told, .. } if told == status), "{error}");
        let clear = matches!(status, 422 | 429);
        assert_eq!(began.elapsed() < Duration::from_secs(60), clear, "{status}: looked for unless it is known");
        assert!(ledger::load(&world.state()).unwrap().is_empty() && world.account().machines.is_empty(), "{status}");
        world.fleet().ensure("gpu-1").await.unwrap();
        world.assert_one("ordered once it is possible");
    }
}

#[tokio::test(start_paused = true)]
async fn trouble_after_the_order_orders_nothing_more() {
    for (kind, status) in [("get", 503), ("get", 429), ("list", 503)] {
        let world = World::new(20, 5);
        let _ = cut(world.fleet().ensure("gpu-1"), 6).await; // dies around the order
        world.account().faults.push_back((kind, Fault::Refused(status)));
        let _ = world.fleet().ensure("gpu-1").await; // fails, or has no use for this call
        world.account().faults.clear();
        world.fleet().ensure("gpu-1").await.unwrap();
        world.assert_one(kind);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_is_cut_off_leaves_no_machine_behind() {
    for (list_lag, get_lag) in [(0, 0), (59, 14)] {
        at_every_point(|polls| async move {
            let world = World::new(list_lag, get_lag);
            // Cut off at any point of its making, and given up at once.
            let whole = cut(world.fleet().ensure("gpu-1"), polls).await.is_some();
            let _ = cut(world.fleet().delete("gpu-1"), polls % 7).await; // dies, too
            world.fleet().delete("gpu-1").await.unwrap();
            assert!(world.account().machines.is_empty(), "{polls} polls: {:?}", world.account().machines);
            assert!(ledger::load(&world.state()).unwrap().is_empty(), "{polls} polls");
            whole
        })
        .await;
    }
    let world = World::new(0, 0);
    world.fleet().ensure("gpu-1").await.unwrap();
    // Something else is being done to it, then the answer is lost.
    world.account().faults.extend([("delete", Fault::Refused(422)), ("delete", Fault::Lost)]);
    world.fleet().delete("gpu-1").await.unwrap_err();
    world.fleet().delete("gpu-1").await.unwrap();
    assert!(world.account().machines.is_empty() && ledger::load(&world.state()).unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn machines_of_others_are_neither_used_nor_deleted() {
    let hour = 3_600_000;
    // There before us, unknown to what was listed for a plan.
    let world = World::new(0, 0);
    let fleet = world.fleet();
    fleet.plan().await.unwrap();
    world.account().add("lab-gpu-1", Some(slipway_core::clock::now_ms()));
    let error = fleet.ensure("gpu-1").await.unwrap_err();
    assert!(matches!(&error, ClusterError::Foreign(text) if text.contains("cluster adopt gpu-1 m1")), "{error}");
    fleet.delete("gpu-1").await.unwrap();
    assert_eq!(world.seen(), (vec!["lab-gpu-1".to_owned()], 0, 0));

    // Made by somebody else long after an order of ours that came to nothing.
    let world = World::new(0, 0);
    let _ = cut(world.fleet().ensure("gpu-1"), 3).await; // the intention is written, nothing ordered
    assert!(ledger::load(&world.state()).unwrap()["gpu-1"].id.is_none() && world.account().orders.is_empty());
    world.account().add("lab-gpu-1", Some(slipway_core::clock::now_ms() + 24 * hour));
    assert!(matches!(world.fleet().ensure("gpu-1").await, Err(ClusterError::Foreign(_))));
    world.fleet().delete("gpu-1").await.unwrap();
    assert_eq!(world.seen(), (vec!["lab-gpu-1".to_owned()], 0, 0));

    // Two of the name at the same time: which is ours is for a person to say.
    let world = World::new(0, 0);
    world.account().faults.push_back(("create", Fault::Lost));
    let _ = cut(world.fleet().ensure("gpu-1"), 4).await; // the order is taken, its answer never comes
    assert_eq!(world.account().orders.len(), 1);
    world.account().add("lab-gpu-1", Some(slipway_core::clock::now_ms()));
    assert!(matches!(world.fleet().ensure("gpu-1").await, Err(ClusterError::Foreign(_))));
    assert!(matches!(world.fleet().delete("gpu-1").await, Err(ClusterError::Foreign(_))));
    world.fleet().adopt("gpu-1", "m2").await.unwrap();
    world.fleet().delete("gpu-1").await.unwrap();
    assert_eq!((world.seen().0.len(), world.seen().2), (2, 0), "adopted ones are only forgotten");
    for wrong in ["", "-m1", "../teams", "m1?x"] {
        assert!(world.fleet().adopt("gpu-1", wrong).await.is_err(), "{wrong}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_was_deleted_by_somebody_is_ordered_again() {
    let world = World::new(59, 14);
    world.fleet().ensure("gpu-1").await.unwrap();
    world.account().machines.clear();
    world.fleet().ensure("gpu-1").await.unwrap();
    assert_eq!(world.seen(), (vec!["lab-gpu-1".to_owned()], 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_group_that_goes_to_another_provider_loses_no_machine() {
    let world = World::new(0, 0);
    world.fleet().ensure("gpu-1").await.unwrap();
    let fleet = world.fleet_of(&cluster("other", 1)).unwrap();
    let error = fleet.ensure("gpu-1").await.unwrap_err().to_string();
    assert!(
        error.contains("made by 'do'") && fleet.plan().await.unwrap()[0].1.text.contains("made by 'do'"),
        "{error}"
    );
    world.assert_one("the group was moved");
}

#[tokio::test(start_paused = true)]
async fn without_a_ledger_that_can_be_read_and_written_nothing_is_ordered() {
    let world = World::new(0, 0);
    let fleet = world.fleet();
    world.fleet().ensure("gpu-1").await.unwrap();
    let path = world.home.join("clusters/lab/machines.json");
    let whole = std::fs::read(&path).unwrap();
    for damaged in [&b""[..], b"{", &whole[..whole.len() / 2]] {
        std::fs::write(&path, damaged).unwrap();
        assert!(matches!(world.fleet_of(&cluster("do", 1)), Err(ClusterError::Io { .. })));
        assert!(fleet.renew().is_err() && any(&world.state()).is_err());
        assert!(resolved(&cluster("do", 1), &world.state()).is_err());
    }
    // A folder in its place: nothing can be written.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir_all(path.join("x")).unwrap();
    world.account().machines.clear();
    assert!(fleet.ensure("gpu-1").await.is_err());
    assert_eq!(world.account().orders.len(), 1, "only the first");
}

#[tokio::test(start_paused = true)]
async fn machines_are_turned_on_and_off_where_that_is_needed() {
    let world = World::new(0, 0);
    world.fleet().ensure("gpu-1").await.unwrap();
    assert_eq!(world.fleet().power_off("gpu-1").await.unwrap(), 1);
    assert_eq!(world.fleet().power_off("gpu-1").await.unwrap(), 0);
    at_every_point(|polls| {
        let world = &world;
        async move {
            world.account().machines[0].instance.power = Power::Off;
            let whole = cut(world.fleet().ensure("gpu-1"), polls).await.is_some();
            world.fleet().ensure("gpu-1").await.unwrap();
            assert_eq!(world.account().machines[0].instance.power, Power::On, "{polls}");
            whole
        }
    })
    .await;
    world.assert_one("off and on");
}
