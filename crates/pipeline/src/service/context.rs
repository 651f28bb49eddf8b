//! What the execution of a run needs to know about it.

use std::sync::Arc;

use slipway_store::sql::Connection;

use super::{Service, ids, specification};
use crate::Error;
use crate::entity::Run;
use crate::ir::read::Document;
use crate::model::RunInfo;
use crate::repo;
use crate::workspace::claim_spec;

/// A run with its specification.
#[derive(Debug)]
pub struct RunContext {
    /// The run as it is stored.
    pub run: Run,
    /// What its tasks may know about it.
    pub info: RunInfo,
    /// The specification.
    pub document: Arc<Document>,
}

impl RunContext {
    /// Loads a run. `pipeline_root` is the root of artifacts for runs and pipelines that give none. `document` is its specification, if that
    /// was just read.
    ///
    /// # Errors
    /// [`Error::NotFound`], or an error of the store.
    pub fn load(
        c: &Connection,
        run_id: &str,
        pipeline_root: &str,
        document: Option<Arc<Document>>,
    ) -> Result<Self, Error> {
        let run = repo::runs::find(c, run_id)?;
        let document = match document {
            Some(document) => document,
            None => Arc::new(specification::from_stored(&repo::specs::find(c, &run.spec)?)?),
        };
        let roots = [&run.config.pipeline_root, &document.spec.default_pipeline_root];
        let root = roots.into_iter().find(|root| !root.is_empty()).map_or(pipeline_root, String::as_str);
        let info = RunInfo {
            run_id: run.run_id.clone(),
            namespace: run.namespace.clone(),
            display_name: run.display_name.clone(),
            resource_name: ids::resource_name(&run.pipeline_name, &run.run_id),
            pipeline_name: run.pipeline_name.clone(),
            pipeline_root: root.to_owned(),
            service_account: run.service_account.clone(),
            // An invalid one is refused when its pipeline is uploaded.
            workspace: document.pipeline_config.workspace.as_ref().and_then(|found| claim_spec(found).ok()),
            created_at: run.created_at,
            scheduled_at: run.scheduled_at,
        };
        Ok(Self { run, info, document })
    }
}

impl Service {
    /// Loads a run with its specification.
    ///
    /// # Errors
    /// [`Error::NotFound`], or an error of the store.
    pub async fn run_context(&self, run_id: String) -> Result<RunContext, Error> {
        let root = self.options.pipeline_root.clone();
        self.db.read(move |c| RunContext::load(c, &run_id, &root, None)).await
    }
}
