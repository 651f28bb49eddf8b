//! Data of other repositories, and at URLs: what a repository contains at a revision, whether Git or DVC tracks it, and how its files get here.
//!
//! A repository in a local folder is read in place. Others are cloned into the user's cache folder ([`clones`]).

mod clones;
mod content;
mod git_url;
pub mod location;
pub mod repository;

pub use content::Tracked;
pub(crate) use git_url::{check as check_url, redact};
pub use location::Location;
pub use repository::{Kind, Node, Options, Repository};
