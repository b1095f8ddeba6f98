"""A small Hugging Face Hub on loopback, so that tests run the real client and never mock it.

No installable server speaks the Hub's write API. This one keeps each repository as a bare git
repository with a folder of LFS objects beside it, and answers what `huggingface_hub` 2.4 asks:

    with HubServer(tmp_path) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token("alice", write=True))
        api.create_repo("alice/slim-vit")

README.md says what is spoken and how to inject faults.
"""

from tests.hub_server.server import DROPPED, Exchange, HubServer

__all__ = ["DROPPED", "Exchange", "HubServer"]
