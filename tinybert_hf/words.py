"""An encoder without layers: a text is the mean of its words' embeddings.

It ranks thousands of texts a second on one core. A pre-norm encoder whose new layers are still the identity computes the
same, so its words can be trained alone before the layers.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from .configuration_tinybert import TinyBertConfig
from .kernels import mean_of_words
from .modeling_tinybert import TinyBertModel, mean_over_tokens


def is_words_alone(config: TinyBertConfig) -> bool:
    """Whether `embed_words` computes what a model of this configuration computes."""
    kinds = (config.norm_position, config.pooling, config.position_embedding_type)
    return not config.num_hidden_layers and kinds == ("pre", "mean", "rotary")


def embed_words(model: TinyBertModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, T) ids, padded on the right -> (B, H): the mean over a text's tokens of what the first block sees."""
    embeddings = model.embeddings
    if model.training and embeddings.dropout.p:
        return mean_over_tokens(embeddings(input_ids, None, None, None), attention_mask)
    words = mean_of_words(embeddings.word_embeddings, input_ids, attention_mask)
    return words * embeddings.scale + embeddings.token_type_embeddings.weight[0]


@torch.no_grad()
def weigh_by_rarity(model: TinyBertModel, texts: Sequence[list[int]]) -> None:
    """Scale each token embedding by its inverse document frequency, as BM25 has it.

    Training then starts from a rare-word search, and rare words that few batches contain still count.
    """
    embeddings = model.get_input_embeddings().weight
    counts = torch.zeros(len(embeddings))  # of texts
    for tokens in texts:
        counts[list(set(tokens))] += 1
    rarity = torch.log1p((len(texts) - counts + 0.5) / (counts + 0.5))
    embeddings.mul_((rarity / rarity[counts > 0].mean())[:, None].to(embeddings))


@torch.no_grad()
def start_from_teacher(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, encode: Callable[[list[str]], Tensor]
) -> None:
    """Put a teacher's embeddings of the tokens into the first dimensions of the model's; the others stay random.

    `encode` is the teacher's, texts -> (texts, its width). A token is a text of its own; pieces of words lose their mark.
    The embeddings are centred and rotated so that the first dimensions vary the most (principal components, as in Model2Vec:
    Tulkens and van Dongen 2024, https://github.com/MinishLab/model2vec), which leaves similarities as they are. Dimensions
    beyond the model's are cut, the others scaled to the variance of the model's own. Special tokens are zeros.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    learned = functional.normalize(encode([token.removeprefix("##") for token in tokens]).float().cpu(), dim=-1)
    learned -= learned.mean(dim=0)
    learned[tokenizer.all_special_ids] = 0
    _, directions = torch.linalg.eigh(learned.T @ learned)  # the least telling direction first
    embeddings = model.get_input_embeddings().weight
    learned = (learned @ directions.flip(1))[:, : embeddings.shape[1]]
    embeddings[:, : learned.shape[1]] = (learned * (embeddings.std() / learned.std())).to(embeddings)
