"""RegionCLIP in small with RAL in training and RAF at inference, for the tests that every method passes."""

from regionclip.clip.class_embeddings import load_class_embeddings
from tests.methods.ralf.stores import write_concepts, write_store
from tests.methods.regionclip import tiny

CONFIG, CLASSES, EMBEDDINGS = tiny.CONFIG, tiny.CLASSES, tiny.EMBEDDINGS
RAF = {
    "MODEL.RALF.RAF.ENABLED": "True",
    "MODEL.RALF.RAF.EMBEDDING": "regions",
    "MODEL.RALF.RAF.NUM_CONCEPTS": "5",
    "MODEL.RALF.RAF.FUSION": "log_add",
}
RAL = {"MODEL.RALF.RAL.ENABLED": "True", "MODEL.RALF.RAL.CLASSES": "lvis"}
OVERRIDES = tiny.OVERRIDES | RAF
TRAINED = tiny.TRAINED | RAL


def files(folder, embeddings):
    """Return the overrides of the files that a config needs."""
    from regionclip.data.class_lists import parse_names

    table = load_class_embeddings(embeddings)
    store = write_store(folder / "store.safetensors", parse_names("lvis"), table)
    concepts = write_concepts(folder / "concepts.safetensors")
    return {"MODEL.RALF.RAL.STORE": str(store), "MODEL.RALF.RAF.CONCEPTS": str(concepts)}
