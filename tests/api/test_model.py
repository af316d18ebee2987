import pytest

import martlet
from martlet.errors import UsageError


def test_the_sampling_in_force_is_what_is_given_then_the_models_then_the_tasks(make_model):
    model = martlet.load(make_model("cpm1", generation={"top_k": 5}))
    params = model.sampling_params("write", temperature=0.25)
    assert (params.temperature, params.top_k, params.top_p) == (0.25, 5, 0.9)
    with pytest.raises(UsageError, match="temperature is 1000"):
        model.sampling_params("write", temperature=1000)
