//! What a route asks of its caller.

/// What is done to a resource; the words are those of Kubernetes roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Read one or several.
    Get,
    /// Read all.
    List,
    /// Make a new one.
    Create,
    /// Change.
    Update,
    /// Change a part.
    Patch,
    /// Remove.
    Delete,
}

impl Verb {
    /// The word in a role.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

/// A resource of the API group `slipway.dev`, as roles name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Runs that are carried out, which execute programs.
    Runs,
    /// What a run prints.
    RunLogs,
    /// Beginning and ending tracked runs, and making the tokens of runs: what the controller of a cluster does.
    RunTracking,
    /// Experiments, tracked runs, metrics and artifacts.
    Experiments,
    /// Registered models, their versions and aliases.
    Models,
    /// Deployments of the gateway.
    Deployments,
    /// Requests to models.
    Inferences,
    /// Machines, their GPUs and clusters.
    Nodes,
    /// The installation itself: integrity checks and the like.
    Installation,
}

impl Resource {
    /// The name in a role; a part of a resource comes after a slash.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::RunLogs => "runs/log",
            Self::RunTracking => "runs/tracking",
            Self::Experiments => "experiments",
            Self::Models => "models",
            Self::Deployments => "deployments",
            Self::Inferences => "inferences",
            Self::Nodes => "nodes",
            Self::Installation => "installation",
        }
    }
}

/// Whether the token of a run opens a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunTokenUse {
    /// It does not.
    Denied,
    /// It does, and the handler limits what it may touch to the run's own experiment and models ([`Caller`](crate::Caller) tells it).
    Scoped,
}

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Nothing: the answer tells only that a server is there, or is the same for everybody.
    Public,
    /// The request proves itself by a signature in its URL, which the handler checks.
    SignedUrl,
    /// To be known. Runs count only where this says so.
    Authenticated(RunTokenUse),
    /// A permission in the namespace of the installation.
    Permission(Verb, Resource, RunTokenUse),
    /// A permission in a namespace that only the handler knows, since the request's path, query or body names it. The handler must call
    /// [`Decision::authorize`](crate::Decision::authorize); an answer of a handler that never did is withheld.
    DecidedByHandler,
}

impl Access {
    /// Reads a resource. Run tokens may read what they track: experiments and models.
    pub const fn get(resource: Resource) -> Self {
        let run_tokens = match resource {
            Resource::Experiments | Resource::Models => RunTokenUse::Scoped,
            _ => RunTokenUse::Denied,
        };
        Self::Permission(Verb::Get, resource, run_tokens)
    }

    /// Makes a new one of a resource.
    pub const fn create(resource: Resource) -> Self {
        Self::Permission(Verb::Create, resource, RunTokenUse::Denied)
    }

    /// Changes a resource.
    pub const fn update(resource: Resource) -> Self {
        Self::Permission(Verb::Update, resource, RunTokenUse::Denied)
    }

    /// Removes from a resource.
    pub const fn delete(resource: Resource) -> Self {
        Self::Permission(Verb::Delete, resource, RunTokenUse::Denied)
    }

    /// The same, open to run tokens too; the handler limits them to what is theirs.
    #[must_use]
    pub const fn and_scoped_runs(self) -> Self {
        match self {
            Self::Permission(verb, resource, _) => Self::Permission(verb, resource, RunTokenUse::Scoped),
            Self::Authenticated(_) => Self::Authenticated(RunTokenUse::Scoped),
            other => other,
        }
    }
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let runs = |run_tokens: &RunTokenUse| if *run_tokens == RunTokenUse::Scoped { " +runs" } else { "" };
        match self {
            Self::Public => f.write_str("public"),
            Self::SignedUrl => f.write_str("signed-url"),
            Self::Authenticated(r) => write!(f, "authenticated{}", runs(r)),
            Self::Permission(verb, resource, r) => write!(f, "{} {}{}", verb.name(), resource.name(), runs(r)),
            Self::DecidedByHandler => f.write_str("decided-by-handler"),
        }
    }
}

/// A verb on a resource in a namespace, which a caller has or lacks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Permission {
    /// What is done.
    pub verb: Verb,
    /// To what.
    pub resource: Resource,
    /// Where; everywhere if unset.
    pub namespace: Option<String>,
}
