"""What sites call their views, in the words of the study.

A label means what the study says it means, or is refused: two sites may use one word for two views.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from vitrael.core.errors import DataError


def translate_labels(
    labels: Sequence[str], *, site: str, views: Collection[str], synonyms: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the study's words for a site's labels, in their order.

    ``views`` are those of the study, ``synonyms`` what this site calls otherwise. Raises DataError
    for a label that is neither, for a synonym of a view that the study does not know, and for two
    labels that mean one view, which a network cannot have learned to tell apart for any use.
    """
    if strange := sorted(set(synonyms.values()) - set(views)):
        raise DataError(
            f"the study maps a label of {site} to a view that it does not know",
            why=f"{strange[0]} is none of {', '.join(sorted(views))}",
            fix="correct the study's map of labels",
        )
    translated = []
    for label in labels:
        view = synonyms.get(label, label)
        if view not in views:
            raise DataError(
                f"{site} has a label that the study does not map",
                why=f"{label} is none of {', '.join(sorted(views))}",
                fix="map it in the study, or leave these images out",
            )
        translated.append(view)
    if twice := sorted({view for view in translated if translated.count(view) > 1}):
        raise DataError(
            f"two labels of {site} mean {twice[0]}",
            why="an expert tells its labels apart, and here there is no difference to learn",
            fix="give these images one label before the expert is trained",
        )
    return tuple(translated)
