//! Permissions that MLflow's routes require. Routes with a `TRACK_…` permission also accept the tokens of runs; their handlers limit a
//! run to the experiments and models of its own namespace (`service/scope.rs`).

use slipway_access::{Access, Resource};

pub(super) const READ_EXPERIMENTS: Access = Access::get(Resource::Experiments);
pub(super) const TRACK_EXPERIMENTS: Access = Access::update(Resource::Experiments).and_scoped_runs();
pub(super) const CHANGE_EXPERIMENTS: Access = Access::update(Resource::Experiments);
pub(super) const DELETE_EXPERIMENTS: Access = Access::delete(Resource::Experiments);
pub(super) const READ_MODELS: Access = Access::get(Resource::Models);
pub(super) const TRACK_MODELS: Access = Access::update(Resource::Models).and_scoped_runs();
pub(super) const CHANGE_MODELS: Access = Access::update(Resource::Models);
pub(super) const DELETE_MODELS: Access = Access::delete(Resource::Models);
