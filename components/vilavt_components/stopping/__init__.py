"""Components of kind stopping: policies that decide when the model stops looking and answers."""
