use super::*;
use crate::deployment::State;
use crate::tensor::Tensor;
use crate::testing::{World, floats, manifest, onnx, row};

fn request(value: f32) -> Request {
    Request { inputs: row(value), ..Request::default() }
}

/// Sends the row `[1, -1]`; returns the first output value and the model version.
async fn infer_one(gateway: &Gateway, name: &str) -> Result<(f32, String), Error> {
    let output = gateway.infer(&*gateway.deployment(name)?, request(1.0)).await?;
    Ok((floats(&output.outputs[0])[0], output.model.resolved.version.clone()))
}

/// Waits until the deployment's first model has this version.
async fn until_version(gateway: &Gateway, name: &str, version: &str) {
    let current =
        || gateway.deployment(name).ok().and_then(|d| d.variants[0].loaded()).map(|l| l.resolved.version.clone());
    let started = tokio::time::Instant::now();
    while current().as_deref() != Some(version) {
        assert!(started.elapsed().as_secs() < 60, "'{name}' is still at version {:?}", current());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// A manifest with a second model `models:/m@next` that gets no traffic.
fn two_models() -> Manifest {
    let mut manifest = manifest();
    let mut second = manifest.spec.models[0].clone();
    second.name = "second".into();
    second.uri = ModelUri::parse("models:/m@next").unwrap();
    second.weight = 0;
    manifest.spec.models.push(second);
    manifest
}

#[tokio::test]
async fn apply_activates_a_deployment_and_a_failed_apply_changes_nothing() {
    let world = World::new();
    let gateway = &world.gateway;
    world.register("models:/m@live", "1", 2.0);
    let status = gateway.apply(manifest(), "apply", LocalPaths::Refused).await.unwrap();
    assert!(status.ready && status.revision == 1);
    assert_eq!(infer_one(gateway, "m").await.unwrap(), (2.0, "1".into()));
    // Applying the same manifest again adds no revision.
    assert_eq!(gateway.apply(manifest(), "apply", LocalPaths::Refused).await.unwrap().revision, 1);

    let missing = Manifest::single("m", ModelUri::parse("models:/m@missing").unwrap());
    let error = gateway.apply(missing, "apply", LocalPaths::Refused).await.unwrap_err();
    assert!(matches!(&error, Error::ModelNotFound(why) if why == "no model models:/m@missing"), "{error}");
    let broken = world.file("broken.onnx", b"no model");
    world.registry.set("models:/m@broken", "9", format!("stored:{}", broken.display()));
    let broken = Manifest::single("m", ModelUri::parse("models:/m@broken").unwrap());
    assert!(matches!(gateway.apply(broken, "apply", LocalPaths::Refused).await, Err(Error::ModelUnusable(_))));
    assert_eq!(infer_one(gateway, "m").await.unwrap(), (2.0, "1".into()));
    assert_eq!(gateway.history("m").unwrap().len(), 1);
}

/// Drops a change just after its revision was stored, before the change is polled again. The server does this when a client disconnects.
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
        assert!(
            futures_util::poll!(&mut change).is_pending(),
            "the change is polled only while its revision is not stored"
        );
        // The change itself advances only when polled; the store and spawned tasks advance during this wait.
        let polled = tokio::time::Instant::now();
        while gateway.history(name).unwrap().len() < revision && polled.elapsed().as_millis() < 500 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
    drop(change);
    // Wait until the spawned task has released the lock.
    drop(gateway.inner.changes_lock.lock().await);
}

#[tokio::test]
async fn stored_change_becomes_active_even_if_its_caller_is_dropped() {
    let world = World::new();
    let gateway = &world.gateway;
    world.register("models:/m@live", "1", 2.0);
    world.register("models:/m@next", "2", 3.0);
    gateway.apply(two_models(), "apply", LocalPaths::Refused).await.unwrap();

    drop_when_stored(gateway, "m", 2, gateway.split("m", &[("second".into(), 100)])).await;
    assert_eq!((gateway.status("m").unwrap().revision, infer_one(gateway, "m").await.unwrap().1), (2, "2".into()));

    drop_when_stored(gateway, "m", 3, gateway.remove("m")).await;
    assert!(matches!(gateway.status("m"), Err(Error::NotFound(_))));
}

#[tokio::test]
async fn split_and_rollback_change_the_weights() {
    let world = World::new();
    let gateway = &world.gateway;
    world.register("models:/m@live", "1", 2.0);
    world.register("models:/m@next", "2", 3.0);
    gateway.apply(two_models(), "apply", LocalPaths::Refused).await.unwrap();
    assert_eq!(infer_one(gateway, "m").await.unwrap().1, "1");
    let split = gateway.split("m", &[("second".into(), 100)]).await.unwrap();
    assert_eq!(split.revision, 2);
    assert_eq!(infer_one(gateway, "m").await.unwrap(), (3.0, "2".into()));
    assert!(matches!(gateway.split("m", &[("third".into(), 100)]).await, Err(Error::Manifest(_))));
    assert!(matches!(gateway.split("other", &[("second".into(), 100)]).await, Err(Error::NotFound(_))));

    let back = gateway.rollback("m", None, LocalPaths::Refused).await.unwrap();
    assert_eq!((back.revision, infer_one(gateway, "m").await.unwrap().1), (3, "1".into()));
    // The restored revision has no predecessor.
    assert!(matches!(gateway.rollback("m", None, LocalPaths::Refused).await, Err(Error::NotFound(_))));
    assert!(matches!(gateway.rollback("m", Some(99), LocalPaths::Refused).await, Err(Error::NotFound(_))));
    let forth = gateway.rollback("m", Some(2), LocalPaths::Refused).await.unwrap();
    assert_eq!((forth.revision, infer_one(gateway, "m").await.unwrap().1), (4, "2".into()));
    let reasons: Vec<_> = gateway.history("m").unwrap().into_iter().map(|r| r.reason).collect();
    assert_eq!(reasons, ["rollback", "rollback", "split", "apply"]);
}

#[tokio::test]
async fn moved_alias_is_reloaded_unless_the_new_version_is_broken() {
    let world = World::new();
    let gateway = &world.gateway;
    world.register("models:/m@live", "1", 2.0);
    gateway.apply(manifest(), "apply", LocalPaths::Refused).await.unwrap();
    world.register("models:/m@live", "2", 3.0);
    until_version(gateway, "m", "2").await;
    assert_eq!(infer_one(gateway, "m").await.unwrap(), (3.0, "2".into()));

    // If the new version cannot be loaded, the old one keeps serving and the status has the reason.
    world.registry.set("models:/m@live", "3", "stored:/nowhere.onnx".into());
    while gateway.status("m").unwrap().variants[0].reason.is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(infer_one(gateway, "m").await.unwrap(), (3.0, "2".into()));
    world.register("models:/m@live", "4", 5.0);
    until_version(gateway, "m", "4").await;
    assert_eq!(gateway.status("m").unwrap().variants[0].reason, None);
}

#[tokio::test]
async fn alias_that_moves_during_loading_is_reloaded() {
    let world = World::new();
    world.register("models:/m@live", "1", 2.0);
    world.gateway.apply(manifest(), "apply", LocalPaths::Refused).await.unwrap();
    // Moves the alias after the gateway has resolved its old version and before it loads that version.
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
    // During an apply.
    world.registry.fetches.forget_permits(usize::MAX >> 4);
    let mut other = manifest();
    other.metadata.name = "other".into();
    let applied = world.gateway.apply(other, "apply", LocalPaths::Refused);
    let (applied, ()) = tokio::join!(applied, move_to("2", 3.0));
    applied.unwrap();
    until_version(&world.gateway, "other", "2").await;
    // While models are loaded after a restart.
    world.registry.fetches.forget_permits(usize::MAX >> 4);
    let reopened = world.reopen();
    move_to("3", 5.0).await;
    until_version(&reopened, "other", "3").await;
}

#[tokio::test]
async fn restart_restores_deployments_but_not_removed_ones() {
    let world = World::new();
    world.register("models:/m@live", "1", 2.0);
    world.gateway.apply(manifest(), "apply", LocalPaths::Refused).await.unwrap();
    let mut removed = manifest();
    removed.metadata.name = "removed".into();
    world.gateway.apply(removed, "apply", LocalPaths::Refused).await.unwrap();
    world.gateway.remove("removed").await.unwrap();
    assert!(matches!(world.gateway.remove("removed").await, Err(Error::NotFound(_))));
    assert!(matches!(infer_one(&world.gateway, "removed").await, Err(Error::NotFound(_))));

    let reopened = world.reopen();
    until_version(&reopened, "m", "1").await;
    assert_eq!(infer_one(&reopened, "m").await.unwrap(), (2.0, "1".into()));
    assert_eq!(reopened.status("m").unwrap().revision, 1);
    assert_eq!(reopened.deployments().len(), 1);

    // A deleted model file fails the deployment, not the server.
    std::fs::remove_file(world.folder.path().join("1.onnx")).unwrap();
    let third = world.reopen();
    while matches!(*third.deployment("m").unwrap().variants[0].state.read(), State::Loading) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(third.status("m").unwrap().variants[0].state, "failed");
    assert!(matches!(infer_one(&third, "m").await, Err(Error::NotReady(_))));
}

#[tokio::test]
async fn only_the_machine_owner_may_deploy_local_paths() {
    let world = World::new();
    let gateway = &world.gateway;
    let local = |path: &str| Manifest::single("local", ModelUri::parse(path).unwrap());
    let existing = world.file("existing.onnx", &onnx::scale(7.0)).display().to_string();
    // The error must not reveal whether the file exists.
    let mut messages = Vec::new();
    for path in [existing.clone(), format!("file://{existing}"), "/nowhere/m.onnx".into(), "/etc/shadow".into()] {
        let error = gateway.apply(local(&path), "apply", LocalPaths::Refused).await.unwrap_err();
        assert!(matches!(error, Error::LocalPath { .. }), "{error}");
        messages.push(error.to_string());
    }
    messages.dedup();
    assert_eq!(messages.len(), 1);
    assert!(gateway.deployment("local").is_err());

    let allowed = gateway.apply(local(&existing), "apply", LocalPaths::Allowed).await.unwrap();
    assert!(allowed.ready);
    assert_eq!(infer_one(gateway, "local").await.unwrap().0, 7.0);
    let missing = gateway.apply(local("/nowhere/m.onnx"), "apply", LocalPaths::Allowed).await;
    assert!(matches!(missing, Err(Error::ModelNotFound(why)) if why.contains("/nowhere")));

    // An active path may stay: other callers may reload it and change its limits, but may not add another path.
    crate::http::load_model(gateway, "local").await.unwrap();
    let mut limits = local(&existing);
    limits.spec.limits.queue = 7;
    gateway.apply(limits, "apply", LocalPaths::Refused).await.unwrap();
    let mut second = local(&existing);
    second.spec.models[0].weight = 0;
    second.spec.models.push(Manifest::single("x", ModelUri::parse("/nowhere").unwrap()).spec.models.remove(0));
    second.spec.models[1].name = "second".into();
    let error = gateway.apply(second, "apply", LocalPaths::Refused).await.unwrap_err();
    assert!(error.to_string().contains("model 'second' is a local path"), "{error}");

    // A path that is no longer active can only be restored by the owner.
    world.register("models:/m@live", "1", 2.0);
    let mut registered = manifest();
    registered.metadata.name = "local".into();
    gateway.apply(registered, "apply", LocalPaths::Refused).await.unwrap();
    let back = gateway.rollback("local", Some(1), LocalPaths::Refused).await;
    assert!(matches!(back, Err(Error::LocalPath { .. })));
    assert_eq!(gateway.rollback("local", Some(1), LocalPaths::Allowed).await.unwrap().variants[0].uri, existing);
}

#[tokio::test]
async fn registry_locations_are_never_opened_as_local_paths() {
    let world = World::new();
    let path = world.file("existing.onnx", &onnx::scale(7.0)).display().to_string();
    for location in [path.clone(), format!("file://{path}"), format!("x:{path}")] {
        world.registry.set("models:/m@live", "1", location.clone());
        // Not even for the owner, because the manifest does not name a local path.
        let error = world.gateway.apply(manifest(), "apply", LocalPaths::Allowed).await.unwrap_err();
        assert_eq!(error.to_string(), format!("{location} is not stored by this server"));
    }
    world.register("models:/m@live", "2", 2.0);
    world.gateway.apply(manifest(), "apply", LocalPaths::Refused).await.unwrap();
    world.registry.set("models:/m@live", "3", path);
    while world.gateway.status("m").unwrap().variants[0].reason.is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(infer_one(&world.gateway, "m").await.unwrap(), (2.0, "2".into()));
}

#[tokio::test]
async fn model_with_dependent_rows_is_not_batched() {
    let world = World::new();
    let file = world.file("mean.onnx", &onnx::mean_of_rows());
    world.registry.set("models:/m@live", "1", format!("stored:{}", file.display()));
    let mut batched = manifest();
    batched.spec.batching = Some(crate::manifest::Batching { max_size: 16, max_delay_ms: 200 });
    let status = world.gateway.apply(batched, "apply", LocalPaths::Refused).await.unwrap();
    let reason = status.variants[0].reason.clone().unwrap();
    assert!(status.ready && reason.starts_with("requests are not batched: the first dimension of output"), "{reason}");
    // Regression: requests in the same batch got an error, or a part of another request's result.
    let deployment = world.gateway.deployment("m").unwrap();
    let results = futures_util::future::join_all((0..8).map(|i| world.gateway.infer(&deployment, request(i as f32))));
    for (i, result) in results.await.into_iter().enumerate() {
        let outputs: Vec<Tensor> = result.unwrap().outputs;
        assert_eq!((floats(&outputs[0]), outputs[0].shape.as_slice()), (&[i as f32, -(i as f32)][..], &[1, 2][..]));
    }
}
