"""A new model's words, started from those of another encoder."""

import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation import load_text_encoder


@torch.no_grad()
def start_from_teacher(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, teacher: str) -> None:
    """Put a teacher's embeddings of the tokens into the first dimensions of the model's; the others stay random.

    A token is given to the teacher as a text of its own; pieces of words lose their mark. What it makes of them is centred
    and rotated so that the first dimensions vary the most (principal components, as in Model2Vec: Tulkens and van Dongen
    2024, https://github.com/MinishLab/model2vec), which leaves the similarities as they are. Dimensions beyond the model's
    are cut. The others are scaled to the variance of the model's own, so that each counts alike. Special tokens are zeros.

    Raises: UnreadableError: if the teacher cannot be loaded.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    encode = load_text_encoder(teacher, "teacher").encode_documents
    learned = functional.normalize(encode([token.removeprefix("##") for token in tokens]).float().cpu(), dim=-1)
    learned -= learned.mean(dim=0)
    learned[tokenizer.all_special_ids] = 0
    _, directions = torch.linalg.eigh(learned.T @ learned)  # the least telling direction first
    embeddings = model.get_input_embeddings().weight
    learned = (learned @ directions.flip(1))[:, : embeddings.shape[1]]
    embeddings[:, : learned.shape[1]] = (learned * (embeddings.std() / learned.std())).to(embeddings)
