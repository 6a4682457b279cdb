"""pydl predict: what it says of images, and what it refuses."""

import pytest
import torch
from runs import command_line  # noqa: F401  (fixtures)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A LeNet that has seen the digits for a few epochs."""
    from pydl import train

    folder = tmp_path_factory.mktemp("trained") / "lenet"
    train.train(train.Config("lenet", epochs=8, threads=1), out=folder)
    return folder


def save_digits(folder, count=12):
    """Test digits as picture files; returns their paths and classes."""
    from PIL import Image

    from pydl import data

    digits, paths = data.get("digits"), []
    for index in range(count):
        paths.append(folder / f"{index}.png")
        Image.fromarray((digits.test.images[index, 0] * 255).byte().numpy()).save(paths[-1])
    return paths, digits.test.targets[:count].tolist()


def test_predict_labels_saved_digits(pydl, tmp_path, trained):
    from pydl.predict import Predictor

    paths, classes = save_digits(tmp_path)
    code, out, err = pydl("predict", trained, *paths, "--out", "labelled", "--top", 2)
    assert (code, err) == (0, "")
    predictions = Predictor(trained)(paths, top=10)
    right = [p.ranking[0][0] == str(label) for p, label in zip(predictions, classes, strict=True)]
    assert sum(right) >= 10
    for prediction in predictions:
        probabilities = [probability for _, probability in prediction.ranking]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert probabilities == sorted(probabilities, reverse=True)
        name, probability = prediction.ranking[0]
        assert f"{probability:.4f}" in out
        assert len(list((tmp_path / "labelled").glob(f"*-{prediction.path.stem}-{name}.png"))) == 1
    assert len(list((tmp_path / "labelled").iterdir())) == len(paths)


def test_predict_sees_what_evaluation_sees(tmp_path, trained):
    from pydl import data
    from pydl.predict import Predictor

    predictor = Predictor(trained, backend_name="torch")
    paths, _ = save_digits(tmp_path, 5)
    images = data.get("digits").test.images[:5]
    expected = predictor.model(predictor.preprocessing((images * 255).byte())).softmax(1)
    got = predictor.probabilities([data.read_image(path) for path in paths])
    torch.testing.assert_close(got, expected)
    inverted = predictor([paths[0]], invert=True, top=10)[0].ranking
    assert inverted != predictor([paths[0]], top=10)[0].ranking


def save(path, pixels):
    from PIL import Image

    Image.fromarray(pixels.numpy()).save(path)
    return path


def test_predict_warns_of_another_background(pydl, tmp_path, trained):
    from pydl import data

    digit = (data.get("digits").test.images[0, 0] * 255).byte()
    dark, light = save(tmp_path / "dark.png", digit), save(tmp_path / "light.png", 255 - digit)
    grey = save(tmp_path / "grey.png", (digit // 4 + 150).byte())
    assert pydl("predict", trained, dark)[2] == ""
    code, _, err = pydl("predict", trained, dark, light)
    assert code == 0
    assert err.startswith(f"pydl: {light}: the background is not that of the training images (brightness 0.")
    assert err.endswith("so the classes mean little; try it with --invert\n")
    assert len(err.splitlines()) == 1
    assert pydl("predict", trained, light, "--invert")[2] == ""
    assert "try it without --invert" in pydl("predict", trained, dark, "--invert")[2]
    assert f"{light} and 1 more: " in pydl("predict", trained, light, grey)[2]


def test_predict_from_a_checkpoint_without_the_background(pydl, tmp_path, trained):
    content = torch.load(trained / "checkpoint.pt", weights_only=True)
    del content["preprocessing"]["edge"]
    torch.save(content, "old.pt")
    code, _, err = pydl("predict", "old.pt", save(tmp_path / "light.png", torch.full((8, 8), 255, dtype=torch.uint8)))
    assert (code, err) == (0, "")


def test_predict_errors(pydl, tmp_path, trained):
    (path,), _ = save_digits(tmp_path, 1)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for arguments, code, message in (
        ((trained, text), 1, f"pydl: {text}: not a readable image"),
        ((trained, tmp_path / "none.png"), 1, "none.png: there is no such file"),
        ((text, path), 1, f"pydl: {text}: not a readable checkpoint"),
        ((trained, path, "--backend", "metal"), 2, "pydl: --backend: expected one of"),
        ((trained,), 2, "IMAGE"),
    ):
        got, out, err = pydl("predict", *arguments)
        assert got == code
        assert message in err.replace("\n", "")
        assert "Traceback" not in out + err


def test_predict_refuses_weights_of_another_model(pydl, tmp_path, trained):
    content = torch.load(trained / "checkpoint.pt", weights_only=True)
    content["config"]["model"] = "mlp"
    torch.save(content, "mixed.pt")
    (path,), _ = save_digits(tmp_path, 1)
    code, _, err = pydl("predict", "mixed.pt", path)
    assert code == 1
    assert "mixed.pt: the checkpoint does not fit mlp: it lacks " in err
