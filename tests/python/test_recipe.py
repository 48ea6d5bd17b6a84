from __future__ import annotations

import pytest

from mpcore.models.recipe import Recipe


@pytest.mark.parametrize("name", Recipe.names())
def test_every_recipe_in_the_package_reads(name):
    assert Recipe.of(name) == Recipe.named(name)


def test_a_toml_file_is_a_recipe(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('pattern = "8:16"\nsolver = "lstsq"\nskip = ["head*"]\n[ignored]\n')
    with pytest.raises(ValueError, match=r"r\.toml: unknown key 'ignored'"):
        Recipe.of(path)
    path.write_text('solver = "lstsq"\nskip = ["head*"]\n[pattern]\n"*" = "8:16"\n"blocks.0.*" = "dense"\n')
    assert Recipe.of(path).pattern == {"*": "8:16", "blocks.0.*": "dense"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pattern": "4:4"}, "4:4"),
        ({"score": "luck"}, "score = 'luck' is not one of magnitude"),
        ({"damping": 0.0}, "damping = 0.0 is not between 0 and 1"),
        ({"positions": 0}, "positions = 0 is not at least 1"),
        ({"budget": "seb", "pattern": {"*": "2:4"}}, "chooses the patterns itself"),
        ({"permute": 1}, "permute = 1 is not a bool"),
        ({"permute": "all"}, "permute = 'all' is not true, false, 'residual', 'gather' or 'interleave'"),
        ({"skip": "head"}, "skip = 'head' is not a tuple"),
        ({"candidates": "2:4"}, "candidates = '2:4' is not a tuple"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict(fields)


@pytest.mark.parametrize("name", ["skip", "candidates"])
def test_a_string_is_not_taken_for_its_letters(name):
    with pytest.raises(ValueError, match=rf"{name} = '2:4' is a string, wanted a tuple of strings: \('2:4',\)"):
        Recipe(**{name: "2:4"})


def test_a_table_asks_for_the_layers_that_it_gives_a_pattern():
    assert Recipe(pattern={"*": "2:4", "fc": "1:4", "stem": "dense"}).asked_for == ("*", "fc")
    assert Recipe().asked_for == ()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="it has default, fast, magnitude, paper-convnextv2-12to16, "):
        Recipe.of("best")


def test_a_file_that_is_not_toml_is_named(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("pattern =")
    with pytest.raises(ValueError, match=r"bad\.toml: not a TOML file"):
        Recipe.of(path)


def test_a_recipe_survives_plain_data():
    recipe = Recipe(pattern={"*": "1:4"}, skip=("a", "b"))
    assert Recipe.from_dict(recipe.to_dict()) == recipe
