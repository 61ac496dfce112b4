module tokentrail.test/apicall

go 1.24.0
