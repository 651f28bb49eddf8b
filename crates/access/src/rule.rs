//! Access rules: what a route requires of its caller.

/// An operation on a resource. The names are those of Kubernetes roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Read one object, or several by name.
    Get,
    /// Read all objects.
    List,
    /// Follow the changes of objects.
    Watch,
    /// Create an object.
    Create,
    /// Replace an object.
    Update,
    /// Change parts of an object.
    Patch,
    /// Delete an object.
    Delete,
    /// Delete all objects, or those that a selector matches.
    DeleteCollection,
}

impl Verb {
    /// The name of the verb in a Kubernetes role.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// A resource, as Kubernetes roles name it. All but the objects of the core group are in the API group `slipway.dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Submitted runs, which execute programs.
    Runs,
    /// The logs of runs.
    RunLogs,
    /// The operations of the controller in a cluster: to start and end tracked runs and to issue run tokens.
    RunTracking,
    /// Experiments, tracked runs, metrics and artifacts.
    Experiments,
    /// Registered models, their versions and aliases.
    Models,
    /// Deployments of the gateway.
    Deployments,
    /// Inference requests to models.
    Inferences,
    /// Remotes of versioned data.
    Data,
    /// Nodes, their GPUs and clusters.
    Nodes,
    /// The installation itself, such as integrity checks.
    Installation,
    /// Namespaces of the object API.
    Namespaces,
    /// Config maps of the object API.
    ConfigMaps,
    /// Secrets of the object API.
    Secrets,
    /// Events of the object API.
    Events,
}

impl Resource {
    /// The name of the resource in a Kubernetes role; a subresource follows a slash.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::RunLogs => "runs/log",
            Self::RunTracking => "runs/tracking",
            Self::Experiments => "experiments",
            Self::Models => "models",
            Self::Deployments => "deployments",
            Self::Inferences => "inferences",
            Self::Data => "data",
            Self::Nodes => "nodes",
            Self::Installation => "installation",
            Self::Namespaces => "namespaces",
            Self::ConfigMaps => "configmaps",
            Self::Secrets => "secrets",
            Self::Events => "events",
        }
    }

    /// The API group of the resource; empty for the core group.
    pub fn group(self) -> &'static str {
        match self {
            Self::Namespaces | Self::ConfigMaps | Self::Secrets | Self::Events => "",
            _ => "slipway.dev",
        }
    }
}

/// Whether a route accepts run tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunTokenUse {
    /// The route rejects run tokens.
    Denied,
    /// The route accepts run tokens, and its handler restricts them to the experiment and models of the run in [`Caller`](crate::Caller).
    Scoped,
}

/// What a route requires of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Nothing. The response reveals only that the server exists, or is the same for every client.
    Public,
    /// A valid signature in the URL, which the handler checks.
    SignedUrl,
    /// Authentication without a specific permission. The [`RunTokenUse`] says whether run tokens are accepted.
    Authenticated(RunTokenUse),
    /// A permission in the namespace of the installation.
    Permission(Verb, Resource, RunTokenUse),
    /// A permission in a namespace that only the handler knows, because the path, query or body of the request names it. The handler must
    /// call [`Decision::authorize`](crate::Decision::authorize); if it does not, the guard withholds its response.
    DecidedByHandler,
}

impl Access {
    /// Permission to read a resource. Run tokens may read experiments and models.
    pub const fn get(resource: Resource) -> Self {
        let run_tokens = match resource {
            Resource::Experiments | Resource::Models => RunTokenUse::Scoped,
            _ => RunTokenUse::Denied,
        };
        Self::Permission(Verb::Get, resource, run_tokens)
    }

    /// Permission to create objects of a resource. Run tokens are rejected.
    pub const fn create(resource: Resource) -> Self {
        Self::Permission(Verb::Create, resource, RunTokenUse::Denied)
    }

    /// Permission to change objects of a resource. Run tokens are rejected.
    pub const fn update(resource: Resource) -> Self {
        Self::Permission(Verb::Update, resource, RunTokenUse::Denied)
    }

    /// Permission to delete objects of a resource. Run tokens are rejected.
    pub const fn delete(resource: Resource) -> Self {
        Self::Permission(Verb::Delete, resource, RunTokenUse::Denied)
    }

    /// Also accepts run tokens; the handler must restrict them to the run's own objects.
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

/// Permission for a verb on a resource in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Permission {
    /// The requested operation.
    pub verb: Verb,
    /// The resource that the operation applies to.
    pub resource: Resource,
    /// The namespace; `None` means all namespaces.
    pub namespace: Option<String>,
}
