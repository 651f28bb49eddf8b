use super::*;
use crate::deployment::State;
use crate::tensor::Tensor;
use crate::testing::{World, floats, manifest, onnx, row};

fn request(value: f32) -> Request {
    Request { inputs: row(value), ..Request::default() }
}

/// What a deployment makes of 1, and which version it was.
async fn ask(gateway: &Gateway, name: &str) -> Result<(f32, String), Error> {
    let answer = gateway.infer(&*gateway.deployment(name)?, request(1.0)).await?;
    Ok((floats(&answer.outputs[0])[0], answer.model.resolved.version.clone()))
}

/// Waits until the deployment's first model is the one of this version.
async fn until_version(gateway: &Gateway, name: &str, version: &str) {
    let found =
        || gateway.deployment(name).ok().and_then(|d| d.variants[0].loaded()).map(|l| l.resolved.version.clone());
    let started = tokio::time::Instant::now();
    while found().as_deref() != Some(version) {
        assert!(started.elapsed().as_secs() < 60, "'{name}' is still at version {:?}", found());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn two() -> Manifest {
    let mut manifest = manifest();
    let mut second = manifest.spec.models[0].clone();
    second.name = "second".into();
    second.uri = ModelUri::parse("models:/m@next").unwrap();
    second.weight = 0;
    manifest.spec.models.push(second);
    manifest
}

#[tokio::test]
async fn apply_puts_a_deployment_in_force_and_a_failed_one_changes_nothing() {
    let world = World::new();
    let gateway = &world.gateway;
    world.register("models:/m@live", "1", 2.0);
    let status = gateway.apply(manifest(), "apply", LocalPaths::Refused).await.unwrap();
    assert!(status.ready && status.revision == 1);
    assert_eq!(ask(gateway, "m").await.unwrap(), (2.0, "1".into()));
    // The same again is no change.
    assert_eq!(gateway.apply(manifest(), "apply", LocalPaths::Refused).await.unwrap().revision, 1);

    let missing = Manifest::single("m", ModelUri::parse("models:/m@missing").unwrap());
    let error = gateway.apply(missing, "apply", LocalPaths::Refused).await.unwrap_err();
    assert!(matches!(&error, Error::Model(why) if why == "no model models:/m@missing"), "{error}");
    let broken = world.file("broken.onnx", b"no model");
    world.registry.set("models:/m@broken", "9", format!("stored:{}", broken.display()));
    let broken = Manifest::single("m", ModelUri::parse("models:/m@broken").unwrap());
    assert!(matches!(gateway.apply(broken, "apply", LocalPaths::Refused).await, Err(Error::Model(_))));
    assert_eq!(ask(gateway, "m").await.unwrap(), (2.0, "1".into()));
    assert_eq!(gateway.history("m").unwrap().len(), 1);
}

/// Drops a change at the moment when its revision is stored and it does not know that yet, as the server does when a client disconnects.
async fn drop_when_stored<T>(
    gateway: &Gateway,
    name: &str,
    revision: usize,
    change: impl Future<Output = Result<T, Error>>,
) {
    let mut change = Box::pin(change);
    let started = tokio::time::Instant::now();
    while gateway.history(name).unwrap().len() < revision {
        assert!(started.elapsed().as_secs() < 60, "revision {revision} of '{name}' is not stored");
        assert!(futures_util::poll!(&mut change).is_pending(), "it is polled once more only while nothing is stored");
        // The change moves on only when it is polled, the store and tasks meanwhile.
        let polled = tokio::time::Instant::now();
        while gateway.history(name).unwrap().len() < revision && polled.elapsed().as_millis() < 500 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
    drop(change);
    // Whoever changes deployments is done.
    drop(gateway.inner.changing.lock().await);
}

#[tokio::test]
async fn a_change_whose_caller_goes_away_is_in_force_when_it_is_stored() {
    let world = World::new();
    let gateway = &world.gateway;
    world.register("models:/m@live", "1", 2.0);
    world.register("models:/m@next", "2", 3.0);
    gateway.apply(two(), "apply", LocalPaths::Refused).await.unwrap();

    drop_when_stored(gateway, "m", 2, gateway.split("m", &[("second".into(), 100)])).await;
    assert_eq!((gateway.status("m").unwrap().revision, ask(gateway, "m").await.unwrap().1), (2, "2".into()));

    drop_when_stored(gateway, "m", 3, gateway.remove("m")).await;
    assert!(matches!(gateway.status("m"), Err(Error::NotFound(_))));
}

#[tokio::test]
async fn weights_are_changed_and_taken_back() {
    let world = World::new();
    let gateway = &world.gateway;
    world.register("models:/m@live", "1", 2.0);
    world.register("models:/m@next", "2", 3.0);
    gateway.apply(two(), "apply", LocalPaths::Refused).await.unwrap();
    assert_eq!(ask(gateway, "m").await.unwrap().1, "1");
    let split = gateway.split("m", &[("second".into(), 100)]).await.unwrap();
    assert_eq!(split.revision, 2);
    assert_eq!(ask(gateway, "m").await.unwrap(), (3.0, "2".into()));
    assert!(matches!(gateway.split("m", &[("third".into(), 100)]).await, Err(Error::Manifest(_))));
    assert!(matches!(gateway.split("other", &[("second".into(), 100)]).await, Err(Error::NotFound(_))));

    let back = gateway.rollback("m", None, LocalPaths::Refused).await.unwrap();
    assert_eq!((back.revision, ask(gateway, "m").await.unwrap().1), (3, "1".into()));
    // There is nothing before the revision that the rollback restored.
    assert!(matches!(gateway.rollback("m", None, LocalPaths::Refused).await, Err(Error::NotFound(_))));
    assert!(matches!(gateway.rollback("m", Some(99), LocalPaths::Refused).await, Err(Error::NotFound(_))));
    let forth = gateway.rollback("m", Some(2), LocalPaths::Refused).await.unwrap();
    assert_eq!((forth.revision, ask(gateway, "m").await.unwrap().1), (4, "2".into()));
    let reasons: Vec<_> = gateway.history("m").unwrap().into_iter().map(|r| r.reason).collect();
    assert_eq!(reasons, ["rollback", "rollback", "split", "apply"]);
}

#[tokio::test]
async fn a_moved_alias_is_followed_and_a_broken_version_is_not() {
    let world = World::new();
    let gateway = &world.gateway;
    world.register("models:/m@live", "1", 2.0);
    gateway.apply(manifest(), "apply", LocalPaths::Refused).await.unwrap();
    world.register("models:/m@live", "2", 3.0);
    until_version(gateway, "m", "2").await;
    assert_eq!(ask(gateway, "m").await.unwrap(), (3.0, "2".into()));

    // What cannot be loaded leaves the old model answering, and says so.
    world.registry.set("models:/m@live", "3", "stored:/nowhere.onnx".into());
    while gateway.status("m").unwrap().variants[0].reason.is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(ask(gateway, "m").await.unwrap(), (3.0, "2".into()));
    world.register("models:/m@live", "4", 5.0);
    until_version(gateway, "m", "4").await;
    assert_eq!(gateway.status("m").unwrap().variants[0].reason, None);
}

#[tokio::test]
async fn an_alias_that_moves_while_its_model_is_loaded_is_followed() {
    let world = World::new();
    world.register("models:/m@live", "1", 2.0);
    world.gateway.apply(manifest(), "apply", LocalPaths::Refused).await.unwrap();
    // Moves the alias while something resolved what it pointed to before, and is about to load that.
    let move_to = async |version: &str, factor: f32| {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        world.register("models:/m@live", version, factor);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        world.registry.fetches.add_permits(1000);
    };
    // While it is put in force,
    world.registry.fetches.forget_permits(usize::MAX >> 4);
    let mut other = manifest();
    other.metadata.name = "other".into();
    let applied = world.gateway.apply(other, "apply", LocalPaths::Refused);
    let (applied, ()) = tokio::join!(applied, move_to("2", 3.0));
    applied.unwrap();
    until_version(&world.gateway, "other", "2").await;
    // and while it is loaded after a restart.
    world.registry.fetches.forget_permits(usize::MAX >> 4);
    let again = world.reopen();
    move_to("3", 5.0).await;
    until_version(&again, "other", "3").await;
}

#[tokio::test]
async fn deployments_come_back_after_a_restart_and_removed_ones_do_not() {
    let world = World::new();
    world.register("models:/m@live", "1", 2.0);
    world.gateway.apply(manifest(), "apply", LocalPaths::Refused).await.unwrap();
    let mut gone = manifest();
    gone.metadata.name = "gone".into();
    world.gateway.apply(gone, "apply", LocalPaths::Refused).await.unwrap();
    world.gateway.remove("gone").await.unwrap();
    assert!(matches!(world.gateway.remove("gone").await, Err(Error::NotFound(_))));
    assert!(matches!(ask(&world.gateway, "gone").await, Err(Error::NotFound(_))));

    let again = world.reopen();
    until_version(&again, "m", "1").await;
    assert_eq!(ask(&again, "m").await.unwrap(), (2.0, "1".into()));
    assert_eq!(again.status("m").unwrap().revision, 1);
    assert_eq!(again.deployments().len(), 1);

    // A model that is gone makes the deployment fail, not the server.
    std::fs::remove_file(world.folder.path().join("1.onnx")).unwrap();
    let third = world.reopen();
    while matches!(*third.deployment("m").unwrap().variants[0].state.read(), State::Loading) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(third.status("m").unwrap().variants[0].state, "failed");
    assert!(matches!(ask(&third, "m").await, Err(Error::NotReady(_))));
}

#[tokio::test]
async fn local_paths_are_for_the_owner_of_the_machine_only() {
    let world = World::new();
    let gateway = &world.gateway;
    let local = |path: &str| Manifest::single("local", ModelUri::parse(path).unwrap());
    let there = world.file("there.onnx", &onnx::scale(7.0)).display().to_string();
    // Whether the file is there makes no difference to who may not ask.
    let mut answers = Vec::new();
    for path in [there.clone(), format!("file://{there}"), "/nowhere/m.onnx".into(), "/etc/shadow".into()] {
        let error = gateway.apply(local(&path), "apply", LocalPaths::Refused).await.unwrap_err();
        assert!(matches!(error, Error::LocalPath { .. }), "{error}");
        answers.push(error.to_string());
    }
    answers.dedup();
    assert_eq!(answers.len(), 1);
    assert!(gateway.deployment("local").is_err());

    let allowed = gateway.apply(local(&there), "apply", LocalPaths::Allowed).await.unwrap();
    assert!(allowed.ready);
    assert_eq!(ask(gateway, "local").await.unwrap().0, 7.0);
    let missing = gateway.apply(local("/nowhere/m.onnx"), "apply", LocalPaths::Allowed).await;
    assert!(matches!(missing, Err(Error::Model(why)) if why.contains("/nowhere")));

    // What is in force may stay: others may load it again and change its limits, but not name another path.
    crate::http::load_model(gateway, "local").await.unwrap();
    let mut limits = local(&there);
    limits.spec.limits.queue = 7;
    gateway.apply(limits, "apply", LocalPaths::Refused).await.unwrap();
    let mut second = local(&there);
    second.spec.models[0].weight = 0;
    second.spec.models.push(Manifest::single("x", ModelUri::parse("/nowhere").unwrap()).spec.models.remove(0));
    second.spec.models[1].name = "second".into();
    let error = gateway.apply(second, "apply", LocalPaths::Refused).await.unwrap_err();
    assert!(error.to_string().contains("model 'second' is a local path"), "{error}");

    // A path that is no longer in force comes back only by the owner's hand.
    world.register("models:/m@live", "1", 2.0);
    let mut registered = manifest();
    registered.metadata.name = "local".into();
    gateway.apply(registered, "apply", LocalPaths::Refused).await.unwrap();
    let back = gateway.rollback("local", Some(1), LocalPaths::Refused).await;
    assert!(matches!(back, Err(Error::LocalPath { .. })));
    assert_eq!(gateway.rollback("local", Some(1), LocalPaths::Allowed).await.unwrap().variants[0].uri, there);
}

#[tokio::test]
async fn what_the_registry_stored_is_never_taken_for_a_local_path() {
    let world = World::new();
    let there = world.file("there.onnx", &onnx::scale(7.0)).display().to_string();
    for location in [there.clone(), format!("file://{there}"), format!("x:{there}")] {
        world.registry.set("models:/m@live", "1", location.clone());
        // Not even for the owner: the manifest names no local path, so nothing of the kind was agreed to.
        let error = world.gateway.apply(manifest(), "apply", LocalPaths::Allowed).await.unwrap_err();
        assert_eq!(error.to_string(), format!("{location} is not stored by this server"));
    }
    world.register("models:/m@live", "2", 2.0);
    world.gateway.apply(manifest(), "apply", LocalPaths::Refused).await.unwrap();
    world.registry.set("models:/m@live", "3", there);
    while world.gateway.status("m").unwrap().variants[0].reason.is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(ask(&world.gateway, "m").await.unwrap(), (2.0, "2".into()));
}

#[tokio::test]
async fn a_model_whose_rows_are_not_its_own_is_not_batched() {
    let world = World::new();
    let file = world.file("mean.onnx", &onnx::mean_of_rows());
    world.registry.set("models:/m@live", "1", format!("stored:{}", file.display()));
    let mut batched = manifest();
    batched.spec.batching = Some(crate::manifest::Batching { max_size: 16, max_delay_ms: 200 });
    let status = world.gateway.apply(batched, "apply", LocalPaths::Refused).await.unwrap();
    let reason = status.variants[0].reason.clone().unwrap();
    assert!(status.ready && reason.starts_with("requests are not batched: three rows"), "{reason}");
    // Before, each of two requests that met in a batch was answered with an error, or with a part of the other's result.
    let deployment = world.gateway.deployment("m").unwrap();
    let answers = futures_util::future::join_all((0..8).map(|i| world.gateway.infer(&deployment, request(i as f32))));
    for (i, answer) in answers.await.into_iter().enumerate() {
        let outputs: Vec<Tensor> = answer.unwrap().outputs;
        assert_eq!((floats(&outputs[0]), outputs[0].shape.as_slice()), (&[i as f32, -(i as f32)][..], &[1, 2][..]));
    }
}
