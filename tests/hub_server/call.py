"""One call to the API: the request, what its path named, who asks, and what he may do.

The rules of access stand here once:

- a wrong token is 401 everywhere;
- a repository that is missing, or private and not yours, is RepoNotFound: 401 to a stranger, 404
  to a user, so that nobody learns which of the two it is;
- writing needs the owner's write token: 401 without a token, 403 with another;
- anyone with a write token may open a pull request where he may read;
- the files of a gated repository are GatedRepo to those not let in; that it is there all may know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.hub_server.protocol import HubError, Request
from tests.hub_server.signing import SignedUrls
from tests.hub_server.store import Repo, Store
from tests.hub_server.users import User


@dataclass(frozen=True)
class Site:
    """What all calls to one server share."""

    endpoint: str
    store: Store
    storage: SignedUrls


@dataclass(frozen=True)
class Call:
    """A request that found its route; `args` are the decoded groups of the route's pattern."""

    site: Site
    request: Request
    args: Mapping[str, str]
    user: User | None

    def repo(self, write: bool = False) -> Repo:
        """The repository the path names, if the user may read it, or write to it."""
        repo = self.site.store.find(self.args["kind"], self.args["repo"])
        owner = repo is not None and self.user is not None and self.user.name == repo.namespace
        if repo is None or (repo.private and not owner):
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.require_writer(repo.namespace, "RepoNotFound")
        return repo

    def repo_files(self) -> Repo:
        """The repository the path names, if the user may have its files."""
        repo = self.repo()
        if not repo.lets_in(self.user.name if self.user else None):
            message = f"Access to model {repo.id} is restricted: ask for access first."
            raise HubError(403 if self.user else 401, message, "GatedRepo")
        return repo

    def repo_to_change(self) -> Repo:
        """The repository the path names, if the user may write to it, or propose to.

        With ``create_pr`` in the query a change is a proposal, which is not the owner's alone.
        """
        if not self.request.query.get("create_pr"):
            return self.repo(write=True)
        repo = self.repo_files()
        self.require_writer(self.user.name if self.user else "", "RepoNotFound")
        return repo

    def require_writer(self, namespace: str, anonymous_code: str | None = None) -> User:
        """The user, if he may write in a namespace.

        Args:
            namespace: Whose repositories are to be written.
            anonymous_code: Error code for a caller without a token. The client takes a bare 401
                from an https Hub for RepoNotFound; over plain http it has to be told.
        """
        if self.user is None:
            raise HubError(401, "Invalid username or password.", anonymous_code)
        if self.user.name != namespace:
            raise HubError(403, f'You have no rights to write under the namespace "{namespace}"')
        if not self.user.can_write:
            message = "Forbidden: you must use a write token to upload to a repository."
            raise HubError(403, message)
        return self.user

    def commit_of(self, repo: Repo) -> str:
        """The commit that the path's revision stands for, `main` if it names none."""
        revision = self.args.get("rev") or "main"
        commit = repo.git.resolve(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit
