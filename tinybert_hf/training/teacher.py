"""Another encoder's embeddings of the tokens, from which those of a new model start."""

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from ..evaluation import load_text_encoder


def embed_tokens(teacher: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """What a teacher makes of each of V tokens: (V, width) fp32, centred; special tokens are rows of zeros.

    A token is given to the teacher as a text of its own; pieces of words lose their mark. The result is rotated so that
    the first dimensions vary the most (principal components, as in Model2Vec: Tulkens and van Dongen 2024,
    https://github.com/MinishLab/model2vec), which leaves the similarities of the centred embeddings as they are.

    Raises: UnreadableError: if the teacher cannot be loaded.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    encode = load_text_encoder(teacher, "teacher").encode_documents
    embeddings = functional.normalize(encode([token.removeprefix("##") for token in tokens]).float().cpu(), dim=-1)
    embeddings -= embeddings.mean(dim=0)
    embeddings[tokenizer.all_special_ids] = 0
    _, directions = torch.linalg.eigh(embeddings.T @ embeddings)  # the least telling direction first
    return embeddings @ directions.flip(1)
